"""``ilmconvert evaluate CHECKPOINT --data DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress
from ilmconvert.cli._complete import models_and_files

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from ilmconvert.evaluation.accuracy import Evaluation

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
    help="Of one folder of class folders only the share that finetune holds out with this option.  [default: all]",
)
@click.option("--seed", default=0, show_default=True, help="Of the split.")
@click.option("--unlabelled", is_flag=True, help="A folder of images without classes; needs --against.")
@click.option("--against", metavar="SOURCE", help="Another checkpoint or model to compare with, image by image.")
@click.option("--weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("MODEL"))
@click.option("--against-weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("SOURCE"))
@model_arg_option("a model that is given by name")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Height and width of the images.  [default: the model's]"
)
@click.option("--device", metavar="cpu|cuda|...", help="[default: an accelerator if there is one]")
@click.option("--amp", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True)
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
        images, share, labelled = _images(model, data, input_size, **which)
        if against is None and not labelled:
            raise click.UsageError("without labels there is only the comparison with another model: add --against")

        def show(done: int, total: int | None) -> None:
            say(f"{done} of {total} images" if total else f"{done} images")

        from ilmconvert.evaluation.accuracy import evaluate as measure

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
        print_json({"model": checkpoint, "against": against, "data": data, "images": share, **result.to_dict()})
    else:
        _print(result, f"{checkpoint} on {data} ({share})", against)


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


def _images(
    model: nn.Module, source: str, input_size: int | None, *, val_split: float | None, seed: int, unlabelled: bool
) -> tuple[Dataset[Any], str, bool]:
    """The validation images of ``source`` as the model wants them, or all if none are set apart.

    Also which of the two, and whether they have labels.
    """
    from ilmconvert.data.open_data import open_data
    from ilmconvert.data.transforms import for_evaluation, transform_config

    found = open_data(source, val_split=val_split, unlabelled=unlabelled, seed=seed)
    share = "all images" if found.val is None else "validation images"
    items = for_evaluation(found.train if found.val is None else found.val, transform_config(model, input_size))
    return items, share, found.labelled or found.val is not None


def _device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _print(result: Evaluation, title: str, against: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows(result, against):
        table.add_row(*row)
    Console().print(table)


def rows(result: Evaluation, against: str | None) -> list[tuple[str, str]]:
    """What the table shows: a label and a text each, without what wasn't measured."""
    found: list[tuple[str, str | None]] = [
        ("images", f"{result.count}" + ("" if result.labelled == result.count else f", {result.labelled} labelled")),
        ("top-1", _share(result.top1, result.top1_interval)),
        ("top-5", _share(result.top5)),
        ("loss", None if result.loss is None else f"{result.loss:.4f} nats"),
        ("calibration error", _share(result.calibration_error)),
        ("not finite", f"{result.not_finite} images" if result.not_finite else None),
        (f"same class as {against}", _share(result.agreement, result.agreement_interval)),
        (f"top-1 of {against}", _share(result.against_top1)),
        ("difference", _share(result.difference, result.difference_interval, sign="+")),
        ("speed", None if result.images_per_second is None else f"{result.images_per_second:.1f} images a second"),
    ]
    return [(label, text) for label, text in found if text is not None]


def _share(value: float | None, interval: tuple[float, float] | None = None, sign: str = "") -> str | None:
    if value is None:
        return None
    text = f"{100 * value:{sign}.2f} %"
    return (
        text if interval is None else f"{text} (95 %: {100 * interval[0]:{sign}.2f} to {100 * interval[1]:{sign}.2f})"
    )
