"""The difference of two networks' outputs, and how much of it is rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ilmconvert.nn.float64 import float64

#: Largest difference of two networks' outputs over the source's largest output that is rounding, by the type that both
#: compute in. Single precision: EfficientNet-Lite0 with weights from ImageNet comes to 1e-6, and of all models with
#: random weights and statistics seven in eight stay below 1e-5 (docs/coverage.md); the rest amplify rounding, in the
#: source, too, and the sweep tells by double precision whether they are exact. Half precision: the parameters are
#: rounded when the layer is stored, by 5e-4 (float16) or 4e-3 (bfloat16) of their size, layer upon layer.
ROUNDING: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def relative_error(error: float, scale: float) -> float:
    """``error / scale``, 0 where both are 0; a NaN stays one.

    >>> relative_error(1.0, 4.0), relative_error(0.0, 0.0), relative_error(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    return error / scale if scale else (0.0 if error == 0 else math.inf if error > 0 else math.nan)


class Difference:
    """The difference of tensors over batches, in sums that don't grow with the images.

    Attributes:
        largest: the largest absolute difference; NaN where a value isn't finite or shapes differ.
        scale: the largest absolute value of the expected tensors.
    """

    largest: float
    scale: float

    def __init__(self) -> None:
        self.largest = self.scale = 0.0
        self._signal = self._error = self._absolute = 0.0
        self._elements = 0

    def add(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """One batch, in the expected tensors' type, at least in float32; different shapes make the results NaN."""
        if [t.shape for t in expected] != [t.shape for t in found]:
            self.largest = self._error = self._absolute = math.nan
            return
        for a, b in zip(expected, found, strict=True):
            if a.numel():
                single = a.is_floating_point() and a.dtype != torch.float64
                a = a.detach().float() if single else a.detach() if a.is_floating_point() else float64(a)
                error = (b.detach().to(a) - a).abs()
                self.largest = larger(self.largest, error.max().item())
                self.scale = larger(self.scale, a.abs().max().item())
                self._signal += _sum(a.square())
                self._error += _sum(error.square())
                self._absolute += _sum(error)
                self._elements += a.numel()

    @property
    def mean(self) -> float:
        """The mean absolute difference."""
        return self._absolute / self._elements if self._elements else 0.0

    @property
    def relative(self) -> float:
        """The largest difference over the largest expected value."""
        return relative_error(self.largest, self.scale)

    @property
    def relative_norm(self) -> float:
        """The Euclidean norm of the difference over that of the expected values."""
        return relative_error(self._error**0.5, self._signal**0.5)

    @property
    def decibels(self) -> float:
        """The signal-to-error ratio: inf for equal tensors, NaN where one isn't finite or the shapes differ."""
        if not (math.isfinite(self._error) and math.isfinite(self._signal)):
            return math.nan
        if self._error == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal else -math.inf


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference over the largest expected value, of all tensors together; NaN for other shapes.

    >>> relative_difference([torch.tensor([1.0, 4.0])], [torch.tensor([2.0, 4.0])])
    0.25
    """
    difference = Difference()
    difference.add(expected, found)
    return difference.relative


def larger(one: float, other: float) -> float:
    """The larger number; NaN if either is, unlike Python's ``max``.

    >>> larger(math.nan, 1.0), larger(1.0, 2.0)
    (nan, 2.0)
    """
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _sum(t: Tensor) -> float:
    # sums of a row in the tensor's type, then of the rows in float64: no large copy in float64
    return float64(t.flatten(1 if t.ndim > 1 else 0).sum(-1)).sum().item()
