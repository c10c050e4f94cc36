"""The outputs of two models on one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.surgery.outputs import outputs

#: The networks inside torchvision's detection models; what stands between them selects and sorts.
DETECTION_STAGES = ("backbone", "head", "rpn.head", *(f"roi_heads.{k}_head" for k in ("box", "mask", "keypoint")))


@dataclass(frozen=True)
class OutputError:
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


def output_error(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> OutputError:
    """Run both models in evaluation mode on ``inputs`` (see :mod:`ilmconvert.data.example_inputs`) and compare.

    Neither model's training flags change. What torchvision's detection models return is chosen by thresholds and
    sorted, so that rounding can change it altogether: of these the networks inside (backbone, heads) are compared,
    each on the input that it gets in the source.

    >>> layer = nn.Linear(3, 4)
    >>> output_error(layer, layer, (torch.ones(2, 3),))
    OutputError(largest_error=0.0, relative_error=0.0, top1_agreement=1.0)
    """
    with evaluating(source), evaluating(converted), torch.no_grad():
        if is_detector(source):
            expected, found = run_stages(source, converted, inputs)
        else:
            expected, found = outputs(source(*inputs)), outputs(converted(*inputs))
    if [t.shape for t in expected] != [t.shape for t in found]:
        return OutputError(math.inf, math.inf, None)
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    largest = _largest(b - a for a, b in pairs)
    relative = relative_error(largest, _largest(a for a, _ in pairs))
    agreement = None
    if is_logits(expected) and expected[0].shape[0]:
        agreement = (expected[0].argmax(-1) == found[0].argmax(-1)).double().mean().item()
    return OutputError(largest, relative, agreement)


def relative_error(error: float, scale: float) -> float:
    """``error / scale``, 0 where both are 0; a NaN stays one.

    >>> relative_error(1.0, 4.0), relative_error(0.0, 0.0), relative_error(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    return error / scale if scale else (0.0 if error == 0 else math.inf if error > 0 else math.nan)


def is_logits(found: list[Tensor]) -> bool:
    """Whether outputs are one (N, classes) tensor of several classes."""
    return len(found) == 1 and found[0].ndim == 2 and found[0].shape[1] > 1


def is_detector(source: nn.Module) -> bool:
    """Whether the model is one of torchvision's for detection."""
    return type(source).__module__.startswith("torchvision.models.detection") and any(
        name in DETECTION_STAGES for name, _ in source.named_modules()
    )


def run_stages(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of the networks inside two detection models, each on the input that it gets in the source."""
    seen: dict[str, tuple[tuple[Any, ...], list[Tensor]]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, result: seen.__setitem__(name, (args, outputs(result)))

    names = [name for name, _ in source.named_modules() if name in DETECTION_STAGES]
    handles = [source.get_submodule(name).register_forward_hook(record(name)) for name in names]
    try:
        source(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    expected, found = list[Tensor](), list[Tensor]()
    for name, (args, result) in seen.items():
        expected += result
        found += outputs(converted.get_submodule(name)(*args))
    return expected, found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's training flag comes back."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _largest(tensors: Iterator[Tensor]) -> float:
    found = [t.abs().max() for t in tensors]
    # torch's max, unlike Python's, hands a NaN on
    return torch.stack([t.cpu() for t in found]).max().item() if found else 0.0
