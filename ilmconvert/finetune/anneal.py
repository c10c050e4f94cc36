"""The restoring path annealed to zero during a run: from the exact start to the paper's layer.

The restoring path is the skip connection around the paper's auto-encoder by which a converted layer gives each instance
its own statistics back, and so starts as the function of its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ilmconvert.errors import FineTuneError
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
    """Scales the restoring path by s(t), which falls from 1 to 0 in the first part of the run.

    Args:
        recipe: its ``anneal`` and ``anneal_end``.
        steps: optimizer steps of the run.

    >>> annealing = Annealing(Recipe(anneal="linear", anneal_end=0.5), steps=100)
    >>> [annealing.strength(step) for step in (0, 25, 50, 100)]
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self._recipe = recipe
        self._steps = steps

    def __bool__(self) -> bool:
        return self._recipe.anneal != "none"

    def strength(self, step: int) -> float:
        """s after so many optimizer steps."""
        if not self:
            return 1.0
        t = step / self._steps / self._recipe.anneal_end
        if t >= 1:
            return 0.0
        return 1 - t if self._recipe.anneal == "linear" else 0.5 * (1 + math.cos(math.pi * t))

    @torch.no_grad()
    def apply(self, model: nn.Module, step: int) -> None:
        """What step number ``step`` (from 1) takes off the path of ``model``, in place."""
        if not self:
            return
        before, after = self.strength(step - 1), self.strength(step)
        if before != after:
            for parameter in restoring_parameters(model):
                parameter.mul_(after / before) if after else parameter.zero_()

    def done(self, step: int) -> bool:
        """Whether the path is gone; True where nothing is annealed."""
        return not self or self.strength(step) == 0


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
