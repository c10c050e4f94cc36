"""The library's SGD and AdamW for stacked networks, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.evidence.stacked import Stack
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.anneal import Annealing
from ilmconvert.finetune.optimizer import learning_rates, parameter_groups

#: Moments by the optimizer's name, and AdamW's settings, which are torch's.
_MOMENTS = {"sgd": 1, "adamw": 2}
_BETAS, _EPS = (0.9, 0.999), 1e-8
_RESTORING = ("restore_weight", "restore_bias")


class StackedOptimizer:
    """The optimizer, schedule, clipping, freezing and annealing of the library's recipes over a :class:`Stack`.

    SGD with Nesterov momentum and AdamW, as timm makes them. A network whose loss isn't finite stays as it is.

    Args:
        networks: that of each recipe, as it starts.
        batches: steps of an epoch.
        compiled: whether the update is fused by a compiler.

    Attributes:
        moments: what the optimizer remembers, like ``stack.flat``: momentum, or the gradient's mean and mean square.
    """

    def __init__(
        self,
        stack: Stack,
        networks: Sequence[nn.Module],
        recipes: Sequence[Recipe],
        batches: int,
        *,
        compiled: bool = False,
    ) -> None:
        self._stack, self._recipe = stack, recipes[0]
        self._update = _fused_update if compiled else _update
        # AdamW counts the steps of each parameter, here of all: none may begin later than others.
        if self._recipe.opt not in _MOMENTS or (self._recipe.opt == "adamw" and self._recipe.freeze_epochs):
            frozen = " and freeze_epochs" if self._recipe.freeze_epochs else ""
            raise ILMConvertError(f"runs with {self._recipe.opt}{frozen} can't be trained together; omit --together")
        device, steps = stack.flat.device, batches * self._recipe.epochs
        self.moments = [torch.zeros_like(stack.flat) for _ in range(_MOMENTS[self._recipe.opt])]
        found = [_groups(network, recipe) for network, recipe in zip(networks, recipes, strict=True)]
        scales = [{name: group.lr_scale for name, group in groups.items()} for groups in found]
        self._scale = torch.stack([stack.columns(values) for values in scales])
        self._decay = stack.columns({name: group.weight_decay for name, group in found[0].items()})
        self._backbone = stack.columns({name: group.kind == "backbone" for name, group in found[0].items()}).bool()
        self._rates = torch.tensor([_rates(replace(recipe, seed=0), batches) for recipe in recipes]).T.to(device)
        self._frozen = torch.arange(steps, device=device) < self._recipe.freeze_epochs * batches
        annealing = Annealing(self._recipe, batches)
        strengths = [annealing.strength(step) for step in range(steps + 1)]
        kept = [after / before if before else 1.0 for before, after in pairwise(strengths)]
        self._kept = torch.tensor(kept, device=device) if annealing else None

    @torch.no_grad()
    def step(self, number: Tensor, gradient: Tensor, alive: Tensor) -> Tensor:
        """Step ``number`` (1,), in place; returns the lengths (R,) of the gradients (R, P) before clipping."""
        recipe = self._recipe
        idle = self._frozen[number] & self._backbone if recipe.freeze_epochs else None
        assert recipe.clip_grad is not None
        lengths = self._update(
            _Rule(recipe.opt, recipe.clip_grad, recipe.momentum),
            self._stack.flat,
            self.moments,
            gradient,
            number,
            self._scale,
            self._rates[number].T,
            self._decay,
            alive,
            idle,
        )
        if self._kept is not None:
            for name, tensor in self._stack.constants.items():
                if name.rpartition(".")[2] in _RESTORING:
                    tensor.mul_(self._kept[number])
        return lengths


class _Rule(NamedTuple):
    opt: str
    clip: float
    momentum: float


def _update(
    rule: _Rule,
    flat: Tensor,
    moments: Sequence[Tensor],
    gradient: Tensor,
    number: Tensor,
    scale: Tensor,
    rate: Tensor,
    decay: Tensor,
    alive: Tensor,
    idle: Tensor | None,
) -> Tensor:
    """A step of ``flat`` and ``moments``, in place; returns the lengths of the gradients."""
    if idle is not None:
        gradient = gradient.masked_fill(idle, 0.0)
    lengths: Tensor = torch.linalg.vector_norm(gradient, dim=1)
    gradient = gradient * (rule.clip / (lengths + 1e-6)).clamp(max=1).unsqueeze(1)
    if rule.opt == "adamw":
        change = _adamw(flat, *moments, gradient, number, decay)
    else:
        change = _sgd(flat, *moments, gradient, decay, rule.momentum)
    if idle is not None:
        change.masked_fill_(idle, 0.0)
        for moment in moments:
            moment.masked_fill_(idle, 0.0)  # they begin when the parameters do
    change.mul_(scale).mul_(rate)
    flat.sub_(change.masked_fill_(~alive.unsqueeze(1), 0.0))
    return lengths


def _sgd(flat: Tensor, moment: Tensor, gradient: Tensor, decay: Tensor, momentum: float) -> Tensor:
    gradient.addcmul_(flat, decay)
    moment.mul_(momentum).add_(gradient)
    return gradient.add_(moment, alpha=momentum)


def _adamw(flat: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, number: Tensor, decay: Tensor) -> Tensor:
    mean.lerp_(gradient, 1 - _BETAS[0])
    square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    mean_part, square_part = (1 - torch.pow(beta, number + 1) for beta in _BETAS)
    change = (mean / mean_part).div_((square / square_part).sqrt_().add_(_EPS))
    return change.addcmul_(flat, decay)


_rates = cache(learning_rates)
#: As fused kernels: an update reads and writes what is as large as all networks. One for each optimizer and number of
#: parameters is made, whatever runs are trained.
_fused_update = torch.compile(_update, dynamic=False)


class _Group(NamedTuple):
    kind: str
    lr_scale: float
    weight_decay: float


def _groups(network: nn.Module, recipe: Recipe) -> dict[str, _Group]:
    """The library's parameter group of each parameter that trains."""
    groups = parameter_groups(network, recipe)
    found = {id(p): _Group(*(group[name] for name in _Group._fields)) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in network.named_parameters() if p.requires_grad}
