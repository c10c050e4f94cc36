"""The restoring path annealed during a run: from the exact start to the paper's layer, or a part of the way.

The restoring path is the skip connection around the paper's auto-encoder by which a converted layer gives each instance
its own statistics back, and so starts as the function of its source. What annealing takes off it, the layer normalises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.optimizer import learning_rates
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.converted_layers import ConvertedLayer, layers_of, replace_layers
from ilmconvert.surgery.ilm_norm_target import ILMNormConfig

_OF_THE_PATH = frozenset({"restore_weight", "restore_bias", "ref_mean", "ref_std"})


def restoring_parameters(model: nn.Module) -> Iterator[Tensor]:
    """``restore_weight`` and ``restore_bias`` of every ILM Norm that has them."""
    for layer in model.modules():
        if isinstance(layer, ILMNorm):
            yield from (p for p in (layer.restore_weight, layer.restore_bias) if p is not None)


class Annealing:
    """Scales the restoring path by s(t), which falls from 1 to the recipe's ``anneal_to``.

    By a line or a cosine it does so in the first part of the run. By the learning rate each step takes a share of the
    path in proportion to the step's rate, which is weight decay on the path alone, with a coefficient that leaves
    ``anneal_to`` of it in the end.

    Args:
        recipe: its ``anneal``, ``anneal_to`` and ``anneal_end``, and its schedule.
        steps_per_epoch: optimizer steps.

    >>> annealing = Annealing(Recipe(anneal="linear", anneal_end=0.5, epochs=4), steps_per_epoch=25)
    >>> [annealing.strength(step) for step in (0, 25, 50, 100)]
    [1.0, 0.5, 0.0, 0.0]
    >>> decaying = Annealing(Recipe(anneal="rate", anneal_to=0.25, epochs=4, sched="constant", warmup_epochs=0), 25)
    >>> [round(decaying.strength(step), 6) for step in (0, 50, 100)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe = recipe
        self._steps = steps_per_epoch * recipe.epochs
        self._passed: list[float] = []
        if recipe.anneal == "rate":
            sums = list(accumulate(learning_rates(recipe, steps_per_epoch), initial=0.0))
            total = sums[-1] or 1.0  # of a single step, which a warm-up may give a rate of zero
            self._passed = [part / total for part in sums]  # the share of all rates before each step

    def __bool__(self) -> bool:
        return self._recipe.anneal != "none"

    def strength(self, step: int) -> float:
        """s after so many optimizer steps."""
        if not self:
            return 1.0
        end = self._recipe.anneal_to
        if self._passed:
            return float(end ** self._passed[step])
        t = min(step / self._steps / self._recipe.anneal_end, 1.0)
        left = 1 - t if self._recipe.anneal == "linear" else 0.5 * (1 + math.cos(math.pi * t))
        return end + (1 - end) * left if t < 1 else end

    @torch.no_grad()
    def apply(self, model: nn.Module, step: int) -> None:
        """What step number ``step`` (from 1) takes off the path of ``model``, in place."""
        if not self:
            return
        before, after = self.strength(step - 1), self.strength(step)
        if before != after:
            for parameter in restoring_parameters(model):
                parameter.mul_(after / before) if after else parameter.zero_()

    def gone(self, step: int) -> bool:
        """Whether nothing is left of the path."""
        return bool(self) and self.strength(step) == 0

    def keeps(self, step: int) -> bool:
        """Whether the network of this step may be the run's result: not one whose path is still to go altogether."""
        return not self or self._recipe.anneal_to > 0 or self.gone(step)


def check_annealing(model: nn.Module) -> None:
    """Raise a FineTuneError if ``model`` has no restoring path that could be annealed."""
    if not any(True for _ in restoring_parameters(model)):
        raise FineTuneError(
            'there is no restoring path to anneal; convert with init="identity", or take a recipe with anneal: none'
        )


def without_restoring(model: nn.Module) -> nn.Module:
    """``model`` with the paper's own layers, in place; its restoring paths, which have to be zero, are gone.

    >>> model = nn.Sequential(ILMNorm(8, 2, key_group_size=4, restore=True))
    >>> without_restoring(model)[0].restore
    False
    """
    if any(bool(p.any()) for p in restoring_parameters(model)):
        raise ValueError("a restoring path isn't zero; without it the model would compute something else")
    layers = layers_of(model)
    bare = [
        replace(made, config=replace(made.config, restore=False, restore_bound=None, restore_range=None))
        if isinstance(made.config, ILMNormConfig)
        else made
        for made in layers
    ]
    state = model.state_dict()
    for key in _keys_of_path(state, layers):
        del state[key]
    found = noted(model)
    result = replace_layers(model, bare)
    result.load_state_dict(state, strict=True, assign=True)
    return note(result, found, settings={**found.settings, "annealed": True})


def _keys_of_path(state: Iterable[str], layers: Iterable[ConvertedLayer]) -> list[str]:
    names = {name for made in layers for name in made.names}
    return [key for key in state if key.rpartition(".")[2] in _OF_THE_PATH and key.rpartition(".")[0] in names]
