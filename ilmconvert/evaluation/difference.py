"""How far the outputs of one network are from another's: every measure that the package reports, each of them once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ilmconvert.evaluation.metrics import Interval, same_class, top1_class, wilson


def relative_error(error: float, scale: float) -> float:
    """``error / scale``, 0 where both are 0; a NaN stays one.

    >>> relative_error(1.0, 4.0), relative_error(0.0, 0.0), relative_error(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    return error / scale if scale else (0.0 if error == 0 else math.inf if error > 0 else math.nan)


def kl_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """KL(softmax(expected) || softmax(found)) in nats of logits (N, classes), for each of the N samples; float64.

    >>> kl_divergence(torch.eye(2), torch.eye(2)).tolist()
    [0.0, 0.0]
    """
    p, q = (t.double().log_softmax(1) for t in (expected, found))
    return (p.exp() * (p - q)).sum(1).clamp(min=0)  # rounding can make it negative


def is_logits(found: Sequence[Tensor]) -> bool:
    """Whether outputs are one (N, classes) tensor of several classes."""
    return len(found) == 1 and found[0].ndim == 2 and found[0].shape[1] > 1


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
                a = a.detach().to(torch.float32 if single else torch.float64)
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


class OutputComparison:
    """Two networks' outputs over batches: their difference, and where they are logits the classes and the divergence.

    >>> compared = OutputComparison()
    >>> _ = compared.add([torch.tensor([[3.0, 0.0], [3.0, 0.0]])], [torch.tensor([[3.0, 0.0], [0.0, 3.0]])])
    >>> compared.agreement, compared.difference.relative
    (0.5, 1.0)
    """

    difference: Difference
    count: int
    classes: int | None
    largest_kl: float

    def __init__(self) -> None:
        self.difference = Difference()
        self.count = self._same = 0
        self.classes = None
        self._kl = self.largest_kl = 0.0

    def add(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor | None:
        """One batch of outputs, expected and found; the divergence of each sample, None without logits."""
        self.difference.add(expected, found)
        if not is_logits(expected) or not is_logits(found) or expected[0].shape != found[0].shape:
            return None
        a, b = (side[0].detach().cpu().float() for side in (expected, found))
        kl = kl_divergence(a, b)
        self.classes = a.shape[1]
        self.count += len(a)
        self._same += int(same_class(top1_class(a), top1_class(b)).sum())
        self._kl += kl.sum().item()
        self.largest_kl = larger(self.largest_kl, kl.max().item() if len(kl) else 0.0)
        return kl

    @property
    def agreement(self) -> float | None:
        """Share of the samples with the same largest logit; None without logits."""
        return self._same / self.count if self.count else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of :attr:`agreement`."""
        return wilson(self._same, self.count) if self.count else None

    @property
    def kl(self) -> float | None:
        """Mean KL(expected || found) in nats; None without logits."""
        return self._kl / self.count if self.count else None


def larger(one: float, other: float) -> float:
    """The larger number; NaN if either is, unlike Python's ``max``.

    >>> larger(math.nan, 1.0), larger(1.0, 2.0)
    (nan, 2.0)
    """
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _sum(t: Tensor) -> float:
    # sums of a row in the tensor's type, then of the rows in float64: no large copy in float64
    return t.flatten(1 if t.ndim > 1 else 0).sum(-1).double().sum().item()
