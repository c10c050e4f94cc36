"""``ilmconvert evaluate CHECKPOINT --data DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress
from ilmconvert.cli._complete import models_and_files
from ilmconvert.cli._table import print_facts

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS_HELP = "Weights of {} if that is a model's name: the library's, random ones, or a file."


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT|MODEL", shell_complete=models_and_files)
@click.option(
    "--data",
    required=True,
    help="A folder with val/ (or validation/, test/), a folder of class folders, or a timm dataset's name.",
)
@click.option(
    "--val-split",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Use only the share of a folder that finetune holds out with this option.  [default: all]",
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the split.")
@click.option("--unlabelled", is_flag=True, help="A folder of images without classes; needs --against.")
@click.option("--against", metavar="SOURCE", help="Another checkpoint or model to compare with, image by image.")
@click.option("--weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("MODEL"))
@click.option("--against-weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("SOURCE"))
@model_arg_option("a model that is given by name")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="Images of a batch."
)
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Height and width of the images.  [default: the model's]"
)
@click.option("--device", metavar="cpu|cuda|...", help="Device to run on.  [default: an accelerator if there is one]")
@click.option(
    "--amp", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True, help="Mixed precision."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
def evaluate(
    checkpoint: str,
    data: str,
    against: str | None,
    weights: str,
    against_weights: str,
    model_args: dict[str, Any],
    batch_size: int,
    workers: int,
    input_size: int | None,
    device: str | None,
    amp: str,
    as_json: bool,
    **which: Any,
) -> None:
    """Measure accuracy, calibration and speed of a checkpoint, a run folder's best one, or a model by name.

    \b
    Examples:
      ilmconvert evaluate run/ --data images --against resnet50
      ilmconvert evaluate resnet50-ilm_gn.safetensors --data photos --unlabelled --against resnet50
    """
    with progress() as say:
        say(f"loading {checkpoint}")
        model = _load(checkpoint, weights, model_args)
        other = None if against is None else _load(against, against_weights, model_args)
        say(f"opening {data}")
        from ilmconvert.data.transforms import evaluation_images

        found, images = evaluation_images(model, data, input_size=input_size, **which)
        part = "all images" if found.val is None else "validation images"
        if against is None and not (found.labelled or found.val is not None):
            raise click.UsageError("without labels there is only the comparison with another model: add --against")

        def show(done: int, total: int | None) -> None:
            say(f"{done} of {total} images" if total else f"{done} images", often=True)

        from ilmconvert.evaluation.accuracy import evaluate as measure
        from ilmconvert.report.facts import evaluation_facts as rows

        result = measure(
            model,
            images,
            against=other,
            device=device or _device(),
            amp=amp,
            batch_size=batch_size,
            workers=workers,
            progress=show,
        )
    if as_json:
        print_json({"model": checkpoint, "against": against, "data": data, "images": part, **result.to_dict()})
    else:
        print_facts(f"{checkpoint} on {data} ({part})", rows(result, against))


def _load(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    """A checkpoint file, the best checkpoint of a run folder, or a model by name."""
    from ilmconvert.finetune.networks import BEST, open_model
    from ilmconvert.models.create import create_model

    path = Path(name)
    if path.is_dir() and not (path / BEST).is_file():
        raise click.UsageError(f"the folder {name} has no {BEST}; give a run folder of ilmconvert finetune or a file")
    if arguments and not path.exists():
        return create_model(name, weights=weights, **arguments)
    return open_model(name, weights)[1]


def _device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
