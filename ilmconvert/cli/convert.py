"""``ilmconvert convert MODEL``, also ``ilmconvert MODEL``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import conversion_options, given, in_options, model_argument, print_json, progress
from ilmconvert.cli._compare import compare
from ilmconvert.cli._convert_view import facts, print_summary, warn_if_not_exact
from ilmconvert.cli._data_options import data_options, open_images, take_data_options
from ilmconvert.cli._formats import FORMATS, check_place, check_push, default_place, push_options, write
from ilmconvert.cli._outputs import output_options

if TYPE_CHECKING:
    from torch import nn


#: Number of images used to calibrate the bound of ``--robust``.
IMAGES = 200


@click.command()
@model_argument
@conversion_options
@click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="default|none|FILE",
    help="Weights: the library's pretrained ones, random ones, or a file: .safetensors, or what a training script "
    "wrote. FILE::ENTRY names an entry of it, such as last.pth.tar::state_dict.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="checkpoint",
    show_default=True,
    help="Output format. checkpoint: one file; hub: a folder MODEL-TO that timm and the Hugging Face hub read; delta: "
    "only the tensors that differ from the source's, as MODEL-TO.delta.safetensors.",
)
@push_options
@click.option(
    "--robust",
    is_flag=True,
    help="Bound the first norm layer, which makes the model more robust to weak and strong contrast.",
)
@click.option("--data", metavar="DATA", help="Unlabelled images that --robust calibrates the bound on.")
@data_options(labels=False)
@output_options("MODEL-TO")
def convert(
    model: str,
    weights: str,
    output: Path | None,
    kind: str,
    push: str | None,
    private: bool,
    robust: bool,
    data: str | None,
    force: bool,
    as_json: bool,
    model_args: dict[str, Any],
    **settings: Any,
) -> None:
    """Convert MODEL, compare it with its source on random inputs, and write a checkpoint that loads by itself.

    \b
    Examples:
      ilmconvert resnet50  # the same as ilmconvert convert resnet50
      ilmconvert convert timm/resnet50 --weights my.pth --model-arg num_classes=10
      ilmconvert convert resnet50 --weights last.pth.tar::state_dict  # not the averaged weights
      ilmconvert convert resnet50 --to ilm_ln --include 'layer4.*' -o out.safetensors
      ilmconvert convert resnet50 --robust --data photos
      ilmconvert convert resnet50 --format hub --push me/resnet50-ilm_gn
    """
    output = output or default_place(f"{_file_stem(model)}-{settings['to']}", kind)
    check_place(output, kind, force)
    check_push(kind, push, private)
    opening = take_data_options(settings, data)
    if data is not None and not robust:
        raise click.UsageError("--data is for the bound of --robust; add --robust, or leave --data out")
    if robust and not (settings["to"].startswith("ilm_") and settings["init"] in (None, "identity")):
        raise click.UsageError(
            "--robust bounds the restoring path, which only ilm_gn, ilm_ln and ilm_in with --init identity have"
        )
    with progress() as say:
        bound = partial(_bound, data=data, opening=opening, say=say) if robust else None
        source, converted, summary = _convert(model, weights, model_args, given(**settings), say, bound)
        summary.update(write(converted, output, kind, source, say, push=push, private=private))
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
    warn_if_not_exact(summary)


def _file_stem(model: str) -> str:
    """What a checkpoint of ``model`` is called: the last part of its name."""
    last = re.split(r"[/:\\]", model.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.+-]", "_", last) or "model"


def _convert(
    name: str,
    weights: str,
    model_args: dict[str, Any],
    settings: dict[str, Any],
    say: Callable[[str], None],
    bound: Callable[[nn.Module], dict[str, Any]] | None,
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The source, the converted model, and what there is to tell."""
    from ilmconvert import surgery
    from ilmconvert.models.create import create_model, parse_name

    say(f"looking at {name}")
    parse_name(name)  # a misspelt name is told before anything slow; also, the time below has no imports in it
    if weights == "default":
        refuse_early(name, model_args, settings)
    say(f"building {name}")
    start = time.perf_counter()
    source = create_model(name, weights=weights, **model_args)
    built = time.perf_counter()
    say("converting")
    try:
        plan = surgery.plan(source, **settings)
        converted = surgery.convert(source, plan)
    except ValueError as error:
        raise click.UsageError(in_options(error)) from error
    done = time.perf_counter()
    say("comparing with the source on random inputs")
    difference = compare(source, converted, plan)  # before a bound makes one that was asked for
    bounded = None if bound is None else bound(converted)
    summary = {
        **facts(name, source, converted, plan),
        "restore_bound": settings.get("restore_bound"),
        "error": difference,
        "bounded": bounded,
        "seconds": {"build": round(built - start, 3), "convert": round(done - built, 3)},
    }
    return source, converted, summary


def _bound(
    model: nn.Module, *, data: str | None, opening: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Bound the first norm, by images where there are some: its name and the limits."""
    from ilmconvert.calibration.bound import calibrate_bound
    from ilmconvert.nn import ILMNorm

    batches = images = None
    if data is not None:
        from ilmconvert.data.transforms import image_batches

        say(f"measuring images of {data}")
        images = open_images(data, opening, unlabelled=True)
        batches = image_batches(model, images, images=IMAGES, batch_size=8)
    name = calibrate_bound(model, batches)
    layer = model.get_submodule(name)
    assert isinstance(layer, ILMNorm)
    assert layer.restore_range is not None
    limits = [round(limit, 4) for limit in layer.restore_range]
    unreadable = [] if images is None else images.unreadable
    return {"layer": name, "limits": limits, "data": data, "unreadable": unreadable}


def refuse_early(name: str, model_args: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise what ``ilmconvert.convert`` would for a model without convertible layers, before any download."""
    from ilmconvert import surgery
    from ilmconvert.models.create import ModelSpec, parse_name
    from ilmconvert.models.norm_counts import skeleton

    spec = parse_name(name)
    model = skeleton(ModelSpec(spec.library, spec.architecture, {**spec.model_args, **model_args}))
    try:
        plan = surgery.plan(model, **settings)
    except ValueError as error:
        raise click.UsageError(in_options(error)) from error
    if not plan.converted:
        surgery.convert(model, plan)
