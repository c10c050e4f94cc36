"""How near a model's outputs are to its source's on held-out batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ilmconvert.surgery.outputs import outputs


class Score(NamedTuple):
    """Of one model against the source.

    Attributes:
        agreement: share of the samples with the same largest class; None unless the outputs are logits (N, classes).
        kl: mean KL(source || model) of the classes' probabilities, in nats; None like the agreement.
        error: root of the summed squares of the outputs' differences over those of the source's outputs, each about
            its mean over the batch.
    """

    agreement: float | None
    kl: float | None
    error: float

    def better_than(self, other: Score) -> bool:
        """A lower KL divergence without a lower agreement; where there are no classes, a lower error.

        Agreement on a few tens of samples is a coarse measure: by itself it would choose by chance. NaN is never
        better, and anything is better than NaN.
        """
        mine, others = (each.error if each.kl is None else each.kl for each in (self, other))
        if mine != mine or self.error != self.error:
            return False
        return not mine >= others and (self.agreement or 0.0) >= (other.agreement or 0.0)


def run(model: nn.Module, batches: Sequence[tuple[Any, ...]]) -> list[list[Tensor]]:
    """The model's outputs for every batch, on the CPU."""
    with torch.no_grad():
        return [[t.detach().float().cpu() for t in outputs(model(*inputs))] for inputs in batches]


def score(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> Score:
    """Of outputs against the source's.

    >>> a, b = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    >>> score([[a]], [[a]]), score([[b]], [[a]]).agreement
    (Score(agreement=1.0, kl=0.0, error=0.0), 0.5)
    """
    same = count = 0
    difference = total = divergence = 0.0
    logits = all(len(batch) == 1 and batch[0].ndim == 2 and batch[0].shape[1] > 1 for batch in expected)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape:
                return Score(None, None, float("nan"))
            difference += (a - b).double().square().sum().item()
            centre = b.mean(0, keepdim=True) if len(b) > 1 else torch.zeros(())
            total += (b - centre).double().square().sum().item()
        if logits:
            same += int((ours[0].argmax(1) == theirs[0].argmax(1)).sum())
            count += len(ours[0])
            p, q = (t[0].double().log_softmax(1) for t in (theirs, ours))
            # rounding can make it negative
            divergence += (p.exp() * (p - q)).sum(1).clamp(min=0).sum().item()
    error = (difference / total) ** 0.5 if total else (0.0 if difference == 0 else float("inf"))
    return Score(same / count if count else None, divergence / count if count else None, error)
