"""How near a model's outputs are to its source's on held-out batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ilmconvert.evaluation.difference import OutputComparison
from ilmconvert.surgery.outputs import outputs


class Score(NamedTuple):
    """Of one model against the source.

    Attributes:
        agreement: share of the samples with the same largest class; None unless the outputs are logits (N, classes).
        kl: mean KL(source || model) of the classes' probabilities, in nats; None like the agreement.
        error: Euclidean norm of the outputs' difference over that of the source's outputs.
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
    compared = OutputComparison()
    for ours, theirs in zip(found, expected, strict=True):
        compared.add(theirs, ours)
    return Score(compared.agreement, compared.kl, compared.difference.relative_norm)
