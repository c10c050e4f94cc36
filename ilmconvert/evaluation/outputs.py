"""The outputs of two models on one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert._constants import shown_by
from ilmconvert.evaluation.difference import OutputComparison
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.outputs import map_tensors, outputs
from ilmconvert.surgery.record_calls import Call, on_calls

#: The networks inside torchvision's detection models; what stands between them selects and sorts.
DETECTION_STAGES = ("backbone", "head", "rpn.head", *(f"roi_heads.{k}_head" for k in ("box", "mask", "keypoint")))


@dataclass(frozen=True)
class OutputDifference:
    """The difference of two models' outputs on one batch.

    Attributes:
        largest_error: largest absolute difference over all outputs; inf where their shapes differ, NaN where one
            of them isn't finite.
        relative_error: ``largest_error`` over the source's largest absolute output (0 if both are 0).
        top1_agreement: share of the batch with the same largest class; None unless the output is one (N, classes)
            tensor.
    """

    largest_error: float
    relative_error: float
    top1_agreement: float | None

    _repr_html_ = shown_by("ilmconvert.report.notebook:outputs")


def output_error(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> OutputDifference:
    """Run both models in evaluation mode on ``inputs`` (see :mod:`ilmconvert.data.example_inputs`) and compare.

    Neither model's training flags change. What torchvision's detection models return is chosen by thresholds and
    sorted, so that rounding can change it altogether: of these the networks inside (backbone, heads) are compared,
    each on the input that it gets in the source.

    >>> layer = nn.Linear(3, 4)
    >>> output_error(layer, layer, (torch.ones(2, 3),))
    OutputDifference(largest_error=0.0, relative_error=0.0, top1_agreement=1.0)
    """
    with evaluating(source, converted), torch.no_grad():
        if is_detector(source):
            expected, found = run_stages(source, converted, inputs)
        else:
            expected, found = outputs(source(*inputs)), outputs(converted(*inputs))
    compared = OutputComparison()
    compared.add(expected, found)
    if [t.shape for t in expected] != [t.shape for t in found]:
        return OutputDifference(math.inf, math.inf, None)
    return OutputDifference(compared.difference.largest, compared.difference.relative, compared.agreement)


def is_detector(source: nn.Module) -> bool:
    """Whether the model is one of torchvision's for detection."""
    return type(source).__module__.startswith("torchvision.models.detection") and any(
        name in DETECTION_STAGES for name, _ in source.named_modules()
    )


def inputs_for(model: nn.Module, value: Any) -> Any:
    """Tensors in ``value`` on the device of the model's parameters, those of floating-point numbers in their type."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return value
    return map_tensors(value, lambda t: t.to(like) if t.is_floating_point() else t.to(like.device))


def run_stages(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of the networks inside two detection models, each on the input that it gets in the source."""
    seen: dict[str, tuple[tuple[Any, ...], list[Tensor]]] = {}

    def record(call: Call) -> None:
        seen[call.name] = call.args, outputs(call.result)

    stages = {name: module for name, module in source.named_modules() if name in DETECTION_STAGES}
    with on_calls(stages, record):
        source(*inputs)
    expected, found = list[Tensor](), list[Tensor]()
    for name, (args, result) in seen.items():
        expected += result
        found += outputs(converted.get_submodule(name)(*inputs_for(converted, args)))
    return expected, found
