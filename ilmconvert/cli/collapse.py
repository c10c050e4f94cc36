"""``ilmconvert collapse CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ilmconvert.cli._common import print_json, progress
from ilmconvert.cli._data_options import data_options, echo_left_out, open_images, take_data_options
from ilmconvert.cli._outputs import beside, check_output, output_options


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="DATA", help="Images to measure on; needed unless all decoders and restoring paths are zero."
)
@data_options(labels=False)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Largest error of a layer, relative to its output.",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Largest number of images."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, metavar="N", help="Images of a batch."
)
@click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Height and width of the images.  [default: the model's]",
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the choice of images.")
@output_options("CHECKPOINT-plain")
def collapse(
    checkpoint: Path,
    data: str | None,
    tolerance: float,
    output: Path | None,
    force: bool,
    as_json: bool,
    **choice: Any,
) -> None:
    """Replace the ILM Norms of CHECKPOINT by plain GroupNorms, where their rescaling no longer depends on the image.

    \b
    Examples:
      ilmconvert collapse run/best.safetensors --data images
      ilmconvert collapse run/best.safetensors --data images --tolerance 1e-2 --json
    """
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    opening = take_data_options(choice, data)
    given, checkpoint = checkpoint, checkpoint_file(checkpoint)
    output = output or beside(checkpoint, "-plain.safetensors", given=given)
    check_output(output, force)
    from ilmconvert.calibration.collapse import collapse as collapsed
    from ilmconvert.checkpoint.save_load import load, save
    from ilmconvert.data.trained_images import described
    from ilmconvert.data.transforms import image_batches, transform_config, transform_text
    from ilmconvert.export.stock_timm import timm_arguments

    with progress() as say:
        say(f"loading {checkpoint}")
        model = load(checkpoint)
        config = None if data is None else transform_config(model, choice["input_size"])
        images = None if data is None else open_images(data, opening, unlabelled=True, seed=choice["seed"])
        batches = None if images is None else image_batches(model, images, **choice)
        say("measuring every layer")
        found = collapsed(model, batches, tolerance=tolerance)
        save(found.model, output)
    summary: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "output": str(output),
        "input": None if config is None else described(config),
        "unreadable": [] if images is None else images.unreadable,
        "layers": [vars(layer) for layer in found.layers],
        "largest_deviation": found.deviation,
        "tolerance": tolerance,
        "agreement": None if found.score is None else found.score.agreement,
        "error": None if found.score is None else found.score.error,
        "timm": timm_arguments(found.model),
    }
    if as_json:
        print_json(summary)
        return
    from ilmconvert.report.text import share

    exact = sum(layer.exact for layer in found.layers)
    click.echo(
        f"{len(found.layers)} layers replaced, {exact} of them exactly; the largest deviation is {found.deviation:.1e}"
    )
    if found.score is not None:
        agreement = "" if found.score.agreement is None else f"; same class on {share(found.score.agreement)} of images"
        click.echo(f"Error of the outputs {found.score.error:.1e}{agreement}")
    echo_left_out(images)
    if config is not None:
        click.echo(f"Images of {transform_text(config)}")
    click.echo(f"Wrote {output}")
