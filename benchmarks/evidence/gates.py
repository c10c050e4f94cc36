"""A learned gate on the restoring path of every ILM Norm, which pays for what it lets through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilmconvert.finetune import Recipe
from ilmconvert.finetune.optimizer import learning_rates
from ilmconvert.nn import ILMNorm

_LEAST = 0.01  # a gate that is shut has no gradient
_REACH = 1.2  # how far a gate would go in a run if nothing but the penalty drew it


class Gates:
    """A factor of each layer on its restoring path, from 1 at the start down to almost nothing.

    The loss has ``penalty`` times the sum of the gates added to it, and plain SGD minimises it, by the recipe's
    schedule and at a rate by which a gate that nothing opposes is almost shut in the end. A gate's gradient follows
    from those of the path that it scales, <gradient, path> / gate, so that no layer has to know of it.

    Args:
        network: its ILM Norms need a restoring path that trains.
        recipe: its schedule.
        steps_per_epoch: optimizer steps.
        penalty: what an open gate adds to the loss.

    Attributes:
        values: the gates, in the order of the layers.
    """

    values: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe, steps_per_epoch: int, penalty: float) -> None:
        layers = (layer for layer in network.modules() if isinstance(layer, ILMNorm))
        self._paths = [(layer.restore_weight, layer.restore_bias) for layer in layers]
        self._penalty = penalty
        self.values = torch.ones(len(self._paths))
        rates = learning_rates(recipe, steps_per_epoch)
        self._rates = [rate * _REACH / (sum(rates) * penalty) for rate in rates]

    @torch.no_grad()
    def apply(self, step: int) -> None:
        """After the optimizer's step ``step`` (from 0): a step of the gates, and their paths scaled, in place."""
        along = torch.stack([sum((_along(p) for p in path), torch.zeros(())) for path in self._paths])
        gradient = along / self.values + self._penalty
        after = (self.values - self._rates[step] * gradient).clamp(_LEAST, 1.0)
        for path, factor in zip(self._paths, after / self.values, strict=True):
            for part in path:
                assert part is not None
                part.mul_(factor)
        self.values = after


def _along(parameter: Tensor | None) -> Tensor:
    """How the loss changes when the parameter grows by a share of itself."""
    assert parameter is not None
    assert parameter.grad is not None, "the restoring path has no gradient to learn gates from"
    return (parameter.grad * parameter).sum()
