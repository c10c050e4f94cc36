"""``ilmconvert calibrate CHECKPOINT --data DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress
from ilmconvert.cli._data_options import data_options, echo_left_out, open_images, take_data_options
from ilmconvert.cli._outputs import beside, check_output, output_options
from ilmconvert.cli._table import print_table

if TYPE_CHECKING:
    from ilmconvert.calibration import Calibration


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="A folder of images (labels aren't used) or a timm dataset's name.")
@data_options(labels=False)
@click.option("--source", metavar="MODEL|FILE", help="What was converted.  [default: what the checkpoint says]")
@click.option("--weights", metavar="FILE|default", help="Weights of the source.  [default: what the checkpoint says]")
@model_arg_option("the source")
@click.option(
    "--images", type=click.IntRange(min=4), default=64, show_default=True, metavar="N", help="Largest number of images."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Images of a batch."
)
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of the images that is held out.",
)
@click.option("--constants-only", is_flag=True, help="Leave the meta-networks as they are.")
@click.option("--input-size", type=click.IntRange(min=1), help="Side of the images.  [default: the model's]")
@click.option("--seed", default=0, show_default=True, help="Random seed of the choice and order of images.")
@output_options("CHECKPOINT-calibrated")
def calibrate(
    checkpoint: Path,
    data: str,
    source: str | None,
    weights: str | None,
    model_args: dict[str, Any],
    holdout: float,
    constants_only: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
    **choice: Any,
) -> None:
    """Fit layers that were initialised from running statistics, or plain ones, to their source on unlabelled images.

    \b
    Examples:
      ilmconvert calibrate resnet50-ln.safetensors --data images
      ilmconvert calibrate resnet50-ln.safetensors --data images --images 256 -o fitted.safetensors
    """
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    opening = take_data_options(choice, data)
    given, checkpoint = checkpoint, checkpoint_file(checkpoint)
    output = output or beside(checkpoint, "-calibrated.safetensors", given=given)
    check_output(output, force)
    from ilmconvert.calibration import calibrate as fit
    from ilmconvert.checkpoint.save_load import save
    from ilmconvert.data.trained_images import described
    from ilmconvert.data.transforms import image_batches, transform_config, transform_text
    from ilmconvert.evaluation.verify.opened_checkpoint import open_checkpoint
    from ilmconvert.evaluation.verify.source_model import find_source_model

    with progress() as say:
        say(f"loading {checkpoint}")
        opened = open_checkpoint(checkpoint)
        original = find_source_model(opened, source=source, weights=weights, model_args=model_args)
        say("reading images")
        config = transform_config(opened.model, choice["input_size"])
        images = open_images(data, opening, unlabelled=True, seed=choice["seed"])
        batches = image_batches(opened.model, images, **choice)
        say("fitting layer after layer")
        found = fit(
            opened.model,
            batches,
            source=original.model,
            meta=not constants_only,
            holdout=holdout,
            progress=lambda done, total, what: say(f"fitting the {what}: {done} of {total} layers", often=True),
        )
        save(opened.model, output)
    if as_json:
        summary = {"checkpoint": str(checkpoint), "output": str(output), "source": original.description}
        facts = {"data": data, "unreadable": images.unreadable, "input": described(config)}
        print_json({**summary, **facts, **found.to_dict()})
        return
    _print(found, original.description)
    echo_left_out(images)
    click.echo(f"Images of {transform_text(config)}")
    click.echo(f"Wrote {output}")


def _print(found: Calibration, source: str) -> None:
    from ilmconvert.report.facts import CALIBRATION_COLUMNS, calibration_rows

    title = f"against {source}: {found.held_out} held-out images, {found.fitted_on} fitted"
    print_table(title, CALIBRATION_COLUMNS, calibration_rows(found))
    for reason in sorted(set(found.skipped.values())):
        count = sum(each == reason for each in found.skipped.values())
        click.echo(f"{count} layers not fitted: {reason}")
