"""What a command made, compared on random inputs with what it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ilmconvert.cli._common import warn
from ilmconvert.cli._convert_view import rounding
from ilmconvert.errors import one_line

if TYPE_CHECKING:
    from torch import nn

    from ilmconvert.surgery import Plan


def compare(source: nn.Module, converted: nn.Module, plan: Plan) -> dict[str, Any] | None:
    """The converted model's error on random inputs; None, with a warning, where the models can't be run.

    Where an exact conversion differs by more than rounding, ``"reason"`` says what is to blame.
    """
    from ilmconvert.evaluation.outputs import is_detector

    error = error_on_random_inputs(source, converted)
    if error is None or error["relative_error"] <= rounding() or not plan.settings.is_exact or is_detector(source):
        return error
    return {**error, "reason": _reason(source, plan)}


def error_on_random_inputs(source: nn.Module, other: nn.Module) -> dict[str, Any] | None:
    """How far another model is from ``source``; None, with a warning, where they can't be run."""
    from dataclasses import asdict

    from ilmconvert.evaluation.outputs import output_error

    try:
        return asdict(output_error(source, other, _random_inputs(source)))
    except Exception as e:
        warn(f"the model wasn't compared with its source, since running them failed: {one_line(e)[:200]}", loud=True)
        return None


def _random_inputs(source: nn.Module) -> tuple[Any, ...]:
    from ilmconvert.data.example_inputs import example_inputs

    # detection models enlarge every image, and look at each one by itself
    detection = type(source).__module__.startswith("torchvision.models.detection")
    return example_inputs(source, batch_size=1 if detection else 2)


def _reason(source: nn.Module, plan: Plan) -> str:
    """Why an exact conversion differs: a layer by name, or rounding that the network amplifies."""
    from ilmconvert.surgery.example import find_difference

    try:
        found = find_difference(source, plan, _random_inputs(source))
    except Exception as error:
        found = f"running the models again failed: {one_line(error)[:200]}"
    return found or "in double precision both compute the same, so that it is rounding which the model amplifies"
