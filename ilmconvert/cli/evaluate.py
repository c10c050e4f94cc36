"""``ilmconvert evaluate CHECKPOINT --data DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ilmconvert.cli._common import (
    SEVERITIES,
    model_arg_option,
    print_json,
    progress,
    refuse_ignored,
    severity_option,
    warn,
)
from ilmconvert.cli._complete import models_and_files
from ilmconvert.cli._data_options import data_options, open_images, take_data_options
from ilmconvert.cli._evaluate_view import print_evaluation, to_dict
from ilmconvert.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ilmconvert.cli._evaluate_view import Corrupted
    from ilmconvert.data.dataset import Augmented
    from ilmconvert.data.open_data import Data
    from ilmconvert.evaluation.accuracy import Evaluation
    from ilmconvert.evaluation.robustness import Condition

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
@data_options(labels=True)
@click.option("--against", metavar="SOURCE", help="Another checkpoint or model to compare with, image by image.")
@click.option("--weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("MODEL"))
@click.option("--against-weights", default="default", metavar="default|none|FILE", help=_WEIGHTS_HELP.format("SOURCE"))
@model_arg_option("a model that is given by name")
@click.option(
    "--corruption",
    "corruption_names",
    multiple=True,
    metavar="NAME|all",
    help="Measure under this corruption, too: contrast, fog, gaussian-noise and others. Repeatable.",
)
@severity_option()
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
    corruption_names: tuple[str, ...],
    severities: tuple[int, ...],
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
      ilmconvert evaluate run/ --data images --against run/baselines/frozen-bn --corruption contrast --corruption fog
      ilmconvert evaluate resnet50-ilm_gn.safetensors --data photos --unlabelled --against resnet50
    """
    conditions = _conditions(corruption_names, severities)
    opening = take_data_options(which, data)
    refuse_ignored(checkpoint, ["weights", *(["model_args"] if _is_checkpoint(against) else [])])
    if _is_checkpoint(against):
        refuse_ignored(against or checkpoint, ["against_weights"])
    with progress() as say:
        say(f"loading {checkpoint}")
        model = _load(checkpoint, weights, model_args)
        other = None if against is None else _load_other(against, against_weights, model_args)
        say(f"opening {data}")
        images = _images(model, open_images(data, opening, **which), input_size, compared=against is not None)
        settings: dict[str, Any] = {
            "against": other,
            "device": device or _device(),
            "amp": amp,
            "batch_size": batch_size,
            "workers": workers,
        }
        result = _measure(model, images, say, settings)
        corrupted = _measure_corrupted(model, images, conditions, which["seed"], say, settings)
    if as_json:
        named = {"model": checkpoint, "against": against, "data": data, "images": images.part}
        print_json(to_dict(named, images.found, images.config, result, corrupted))
    else:
        title = f"{checkpoint} on {data} ({images.part})"
        print_evaluation(title, images.found, images.config, result, corrupted, against)


class _Images(NamedTuple):
    """What a network is measured on: the data, the images behind its transform, and the transform."""

    found: Data
    items: Augmented
    config: dict[str, Any]

    @property
    def part(self) -> str:
        return "all images" if self.found.val is None else "validation images"


def _images(model: nn.Module, opened: Data, input_size: int | None, *, compared: bool) -> _Images:
    """The images as the network takes them; those without labels only to compare two networks."""
    from ilmconvert.data.transforms import evaluation_images, transform_config

    config = transform_config(model, input_size)
    found, items = evaluation_images(model, opened, input_size=input_size)
    _check_classes(found, model)
    if not compared and not (found.labelled or found.val is not None):
        raise click.UsageError("without labels there is only the comparison with another model: add --against")
    return _Images(found, items, config)


def _measure(model: nn.Module, images: _Images, say: Callable[..., None], settings: dict[str, Any]) -> Evaluation:
    from ilmconvert.evaluation.accuracy import evaluate as measure

    def show(done: int, total: int | None) -> None:
        say(f"{done} of {total} images" if total else f"{done} images", often=True)

    return measure(model, images.items, progress=show, **settings)


def _measure_corrupted(
    model: nn.Module,
    images: _Images,
    conditions: list[Condition],
    seed: int,
    say: Callable[..., None],
    settings: dict[str, Any],
) -> Corrupted:
    from ilmconvert.evaluation.corrupted import evaluate_corrupted

    corrupted = []
    for each in evaluate_corrupted(model, images.items.items, images.config, conditions, seed=seed, **settings):
        corrupted.append(each)
        say(f"condition {len(corrupted)} of {len(conditions)}", often=True)
    return corrupted


def _conditions(names: tuple[str, ...], severities: tuple[int, ...]) -> list[Condition]:
    if severities and not names:
        raise click.UsageError("--severity is of corruptions; add --corruption NAME, or --corruption all")
    if not names:
        return []  # without waiting for torch
    from ilmconvert.evaluation.corrupted import corruptions

    return corruptions(names, severities or SEVERITIES)


def _is_checkpoint(name: str | None) -> bool:
    """Whether a network, if there is one, comes from a file and not by its name."""
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    return name is None or checkpoint_file(name).is_file()


def _check_classes(found: Data, model: nn.Module) -> None:
    """Refuse data of other classes than the head's, and warn of those that are called otherwise."""
    from ilmconvert.data.folders import some
    from ilmconvert.data.open_data import check_head
    from ilmconvert.data.trained_images import trained_classes
    from ilmconvert.models.head import number_of_classes

    classes = number_of_classes(model)
    if classes is not None and classes > 1:  # what has fewer outputs is refused as no classifier
        cure = (
            "give a checkpoint that was fine-tuned on these classes, or compare without labels: --unlabelled --against"
        )
        check_head(found, classes, cure)
    ours, theirs = trained_classes(model), found.class_names
    if ours and theirs and ours != theirs:
        warn(f"the classes of the data ({some(theirs)}) count as those that the network was trained on ({some(ours)})")


def _load(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    """A checkpoint, of a file or folder, or a model by name."""
    from ilmconvert.finetune.networks import open_model

    return open_model(name, weights, arguments)[1]


def _load_other(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return _load(name, weights, arguments)
    except ModelError as error:
        raise ModelError(str(error).replace("--weights", "--against-weights")) from error


def _device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
