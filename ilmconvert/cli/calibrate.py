"""``ilmconvert calibrate CHECKPOINT --data DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import check_output, output_options, print_json, progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ilmconvert.calibration import Calibration


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="A folder of images (labels aren't used) or a timm dataset's name.")
@click.option("--source", metavar="MODEL|FILE", help="What was converted.  [default: what the checkpoint says]")
@click.option("--weights", metavar="FILE|default", help="Of the source.  [default: what the checkpoint says]")
@click.option("--images", type=click.IntRange(min=4), default=64, show_default=True, help="At most so many.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.25, show_default=True)
@click.option("--constants-only", is_flag=True, help="Leave the meta-networks as they are.")
@click.option("--input-size", type=click.IntRange(min=1), help="Side of the images.  [default: the model's]")
@click.option("--seed", default=0, show_default=True, help="Of the choice and order of images.")
@output_options("CHECKPOINT-calibrated")
def calibrate(
    checkpoint: Path,
    data: str,
    source: str | None,
    weights: str | None,
    holdout: float,
    constants_only: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
    **choice: Any,
) -> None:
    """Fit a checkpoint of the moments start, or a plain one, to its source on a few unlabelled images.

    \b
    Examples:
      ilmconvert calibrate resnet50-ln.safetensors --data images
      ilmconvert calibrate resnet50-ln.safetensors --data images --images 256 -o fitted.safetensors
    """
    output = output or checkpoint.with_name(f"{checkpoint.stem}-calibrated.safetensors")
    check_output(output, force)
    from ilmconvert.calibration import calibrate as fit
    from ilmconvert.checkpoint.save_load import save
    from ilmconvert.evaluation.verify.find_source import find_reference
    from ilmconvert.evaluation.verify.opened_checkpoint import open_subject

    with progress() as say:
        say(f"loading {checkpoint}")
        subject = open_subject(checkpoint)
        reference = find_reference(subject, source=source, weights=weights)
        say("reading images")
        batches = image_batches(subject.model, data, **choice)
        say("fitting layer after layer")
        found = fit(subject.model, batches, source=reference.model, meta=not constants_only, holdout=holdout)
        save(subject.model, output)
    if as_json:
        summary = {"checkpoint": str(checkpoint), "output": str(output), "source": reference.description}
        print_json({**summary, "data": data, **found.to_dict()})
        return
    _print(found, reference.description)
    click.echo(f"Wrote {output}")


def _print(found: Calibration, source: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"against {source}: {found.held_out} held-out images, {found.fitted_on} fitted")
    for column in ("values", "same class", "KL, nats", "error of the outputs", ""):
        table.add_column(column)
    for name, score in found.scores.items():
        agreement = "-" if score.agreement is None else f"{score.agreement:.1%}"
        kl = "-" if score.kl is None else f"{score.kl:.3f}"
        table.add_row(name, agreement, kl, f"{score.error:.3f}", "kept" if name == found.kept else "")
    Console().print(table)
    for reason in sorted(set(found.skipped.values())):
        count = sum(each == reason for each in found.skipped.values())
        click.echo(f"{count} layers not fitted: {reason}")


def image_batches(
    model: nn.Module, data: str, *, images: int, batch_size: int, seed: int, input_size: int | None = None
) -> list[Tensor]:
    """Up to so many training images of ``data`` in random order, behind the model's evaluation transform."""
    import torch

    from ilmconvert.data.transforms import unit_images

    chosen, normalize = unit_images(model, data, at_most=images, input_size=input_size, seed=seed, training=True)
    return list(normalize(torch.stack(chosen)).split(batch_size))
