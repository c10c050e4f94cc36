"""How far one network is from another's: every measure that the package reports, each of them once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ilmconvert.evaluation.metrics import Interval, same_class, top1_class, wilson
from ilmconvert.nn.float64 import float64
from ilmconvert.surgery.difference import Difference, larger


def kl_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """KL(softmax(expected) || softmax(found)) in nats of logits (N, classes), for each of the N samples; float64.

    >>> import torch
    >>> kl_divergence(torch.eye(2), torch.eye(2)).tolist()
    [0.0, 0.0]
    """
    p, q = (float64(t).log_softmax(1) for t in (expected, found))
    return (p.exp() * (p - q)).sum(1).clamp(min=0)  # rounding can make it negative


def is_logits(found: Sequence[Tensor]) -> bool:
    """Whether outputs are one (N, classes) tensor of several classes."""
    return len(found) == 1 and found[0].ndim == 2 and found[0].shape[1] > 1


class OutputComparison:
    """Two networks' outputs over batches: their difference, and where they are logits the classes and the divergence.

    >>> import torch
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
