"""``ilmconvert convert MODEL``, also ``ilmconvert MODEL``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import (
    conversion_options,
    given,
    model_argument,
    output_options,
    print_json,
    progress,
    warn,
)
from ilmconvert.cli._convert_view import facts, is_exact, print_summary, rounding, warn_if_not_exact
from ilmconvert.cli._exit import one_line
from ilmconvert.cli._formats import FORMATS, check_place, check_push, default_place, push_options, write

if TYPE_CHECKING:
    from torch import nn

    from ilmconvert.surgery import Plan

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
    if data is not None and not robust:
        raise click.UsageError("--data is for the bound of --robust; add --robust, or leave --data out")
    if robust and not (settings["to"].startswith("ilm_") and settings["init"] in (None, "identity")):
        raise click.UsageError(
            "--robust bounds the restoring path, which only ilm_gn, ilm_ln and ilm_in with --init identity have"
        )
    with progress() as say:
        source, converted, summary = _convert(model, weights, model_args, given(**settings), say, robust, data)
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
    robust: bool,
    data: str | None,
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
        raise click.UsageError(str(error)) from error
    done = time.perf_counter()
    say("comparing with the source on random inputs")
    difference = compare(source, converted, plan)  # before a bound makes one that was asked for
    bounded = _bound(converted, data, say) if robust else None
    summary = {
        **facts(name, source, converted, plan),
        "restore_bound": settings.get("restore_bound"),
        "error": difference,
        "bounded": bounded,
        "seconds": {"build": round(built - start, 3), "convert": round(done - built, 3)},
    }
    return source, converted, summary


def _bound(model: nn.Module, data: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Bound the first norm, by images where there are some: its name and the limits."""
    from ilmconvert.calibration.bound import calibrate_bound
    from ilmconvert.nn import ILMNorm

    batches = None
    if data is not None:
        from ilmconvert.data.transforms import image_batches

        say(f"measuring images of {data}")
        batches = image_batches(model, data, images=IMAGES, batch_size=8)
    name = calibrate_bound(model, batches)
    layer = model.get_submodule(name)
    assert isinstance(layer, ILMNorm)
    assert layer.restore_range is not None
    return {"layer": name, "limits": [round(limit, 4) for limit in layer.restore_range], "data": data}


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
        raise click.UsageError(str(error)) from error
    if not plan.converted:
        surgery.convert(model, plan)


def compare(source: nn.Module, converted: nn.Module, plan: Plan) -> dict[str, Any] | None:
    """The converted model's error on random inputs; None, with a warning, where the models can't be run.

    Where an exact conversion differs by more than rounding, ``"reason"`` says what is to blame.
    """
    from dataclasses import asdict

    from ilmconvert.data.example_inputs import example_inputs
    from ilmconvert.evaluation.outputs import is_detector, output_error

    # detection models enlarge every image, and look at each one by itself
    detection = type(source).__module__.startswith("torchvision.models.detection")
    try:
        inputs = example_inputs(source, batch_size=1 if detection else 2)
        error = asdict(output_error(source, converted, inputs))
    except Exception as e:
        warn(f"the model wasn't compared with its source, since running them failed: {one_line(e)[:200]}", loud=True)
        return None
    if is_exact(plan) and not error["relative_error"] <= rounding() and not is_detector(source):
        error["reason"] = _reason(source, plan, inputs)
    return error


def _reason(source: nn.Module, plan: Plan, inputs: tuple[Any, ...]) -> str:
    """Why an exact conversion differs: a layer by name, or rounding that the network amplifies."""
    from ilmconvert.surgery.example import find_difference

    try:
        found = find_difference(source, plan, inputs)
    except Exception as error:
        found = f"running the models again failed: {one_line(error)[:200]}"
    return found or "in double precision both compute the same, so that it is rounding which the model amplifies"
