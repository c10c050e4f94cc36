"""Networks of one architecture as one: their parameters stacked, and the library's SGD for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.anneal import Annealing
from ilmconvert.finetune.optimizer import Schedule, make_optimizer, parameter_groups
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.composed import composed
from ilmconvert.nn.layer import ILMNormAct
from ilmconvert.nn.restore_range import RestoreRange

_LIMITS = "limits"
#: Moments by the optimizer's name, and AdamW's settings, which are torch's.
_MOMENTS = {"sgd": 1, "adamw": 2}
_BETAS, _EPS = (0.9, 0.999), 1e-8
_RESTORING = ("restore_weight", "restore_bias")


class Stack:
    """The tensors of several networks.

    Attributes:
        flat: what trains, a row for each network.
        constants: the rest by name, networks first; buffers, and what is frozen.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        parameters, buffers = stack_module_state(list(networks))
        self.count = len(networks)
        self._shapes = {name: t.shape[1:] for name, t in parameters.items() if t.requires_grad}
        trained = [parameters[name].detach().flatten(1) for name in self._shapes]
        self._sizes = [t.shape[1] for t in trained]
        self.flat = torch.cat(trained, 1).requires_grad_()
        frozen = {name: t.detach() for name, t in parameters.items() if name not in self._shapes}
        self.constants = {**frozen, **{name: t.clone() for name, t in buffers.items()}}
        self.constants |= {
            f"{name}.{_LIMITS}": torch.stack([_limits(network.get_submodule(name)) for network in networks])
            for name in _ranged(networks[0])
        }

    @property
    def names(self) -> list[str]:
        """Of what trains, in the order of the columns of ``flat``."""
        return list(self._shapes)

    def columns(self, values: Mapping[str, float]) -> Tensor:
        """A row like those of ``flat`` from a number for each parameter."""
        parts = [torch.full((size,), values[name]) for name, size in zip(self._shapes, self._sizes, strict=True)]
        return torch.cat(parts).to(self.flat.device)

    def parameters(self) -> dict[str, Tensor]:
        """Views of ``flat``, networks first."""
        parts = zip(self._shapes.items(), self.flat.split(self._sizes, 1), strict=True)
        return {name: part.view(self.count, *shape) for (name, shape), part in parts}

    @torch.no_grad()
    def copy_to(self, network: nn.Module, row: int) -> None:
        """Give ``network`` the tensors of one."""
        found = {**self.parameters(), **self.constants}
        state = network.state_dict(keep_vars=True)
        for name, tensor in state.items():
            tensor.copy_(found[name][row])


def stackable(network: nn.Module) -> nn.Module:
    """``network`` made to be called with stacked tensors, in place; it computes the same.

    The ranges of ILM Norms become buffers, so that each network can have its own, and convolutions of one position
    become products of matrices: stacked, they are many small groups, which libraries are slow for.
    """
    for name in _ranged(network):
        layer = network.get_submodule(name)
        layer.register_buffer(_LIMITS, _limits(layer))
        assert isinstance(layer, ILMNorm)
        layer.forward = partial(_within_limits, layer)  # type: ignore[method-assign]
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
            assert layer.padding in ((0, 0), "valid", "same")
            layer.forward = partial(_product, layer)  # type: ignore[method-assign]
    return network


def _product(layer: nn.Conv2d, x: Tensor) -> Tensor:
    y = torch.einsum("oc,nchw->nohw", layer.weight.flatten(1), x)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


def _ranged(network: nn.Module) -> list[str]:
    norms = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, ILMNorm))
    return [name for name, layer in norms if layer.restore_range is not None]


def _limits(layer: nn.Module) -> Tensor:
    assert isinstance(layer, ILMNorm)
    assert layer.restore_range is not None
    return torch.tensor(layer.restore_range, device=layer.encoder.device)


def _within_limits(layer: ILMNorm, x: Tensor) -> Tensor:
    """:meth:`ILMNorm.forward` with limits that are a tensor."""
    limits: Tensor = getattr(layer, _LIMITS)
    settings = Settings(
        layer.num_groups,
        layer.encoder.shape[1],
        layer.eps,
        layer.correction,
        layer.restore_bound,
        RestoreRange(*limits.unbind()),  # type: ignore[arg-type]
    )
    y = composed(x, Tensors(*(getattr(layer, name) for name in Tensors._fields)), settings)
    result: Tensor = layer.act(layer.drop(y)) if isinstance(layer, ILMNormAct) else y
    return result


class StackedOptimizer:
    """The optimizer, schedule, clipping, freezing and annealing of the library's recipes over a :class:`Stack`.

    SGD with Nesterov momentum and AdamW, as timm makes them. A network whose loss isn't finite stays as it is.

    Args:
        networks: that of each recipe, as it starts.
        batches: steps of an epoch.

    Attributes:
        moments: what the optimizer remembers, like ``stack.flat``: momentum, or the gradient's mean and mean square.
    """

    def __init__(self, stack: Stack, networks: Sequence[nn.Module], recipes: Sequence[Recipe], batches: int) -> None:
        self._stack, self._recipe = stack, recipes[0]
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
        annealing = Annealing(self._recipe, steps)
        strengths = [annealing.strength(step) for step in range(steps + 1)]
        kept = [after / before if before else 1.0 for before, after in pairwise(strengths)]
        self._kept = torch.tensor(kept, device=device) if annealing else None

    @torch.no_grad()
    def step(self, number: Tensor, gradient: Tensor, alive: Tensor) -> Tensor:
        """Step ``number`` (1,), in place; returns the lengths (R,) of the gradients (R, P) before clipping."""
        recipe, flat = self._recipe, self._stack.flat
        idle = self._frozen[number] & self._backbone if recipe.freeze_epochs else None
        if idle is not None:
            gradient = gradient.masked_fill(idle, 0.0)
        lengths: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        assert recipe.clip_grad is not None
        gradient = gradient * (recipe.clip_grad / (lengths + 1e-6)).clamp(max=1).unsqueeze(1)
        change = self._adamw(number, gradient) if recipe.opt == "adamw" else self._sgd(gradient)
        if idle is not None:
            change.masked_fill_(idle, 0.0)
            for moment in self.moments:
                moment.masked_fill_(idle, 0.0)  # they begin when the parameters do
        change.mul_(self._scale).mul_(self._rates[number].T)
        flat.sub_(change.masked_fill_(~alive.unsqueeze(1), 0.0))
        if self._kept is not None:
            for name, tensor in self._stack.constants.items():
                if name.rpartition(".")[2] in _RESTORING:
                    tensor.mul_(self._kept[number])
        return lengths

    def _sgd(self, gradient: Tensor) -> Tensor:
        (momentum,) = self.moments
        gradient.addcmul_(self._stack.flat, self._decay)
        momentum.mul_(self._recipe.momentum).add_(gradient)
        return gradient.add_(momentum, alpha=self._recipe.momentum)

    def _adamw(self, number: Tensor, gradient: Tensor) -> Tensor:
        mean, square = self.moments
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        mean_part, square_part = (1 - torch.pow(beta, number + 1) for beta in _BETAS)
        change = (mean / mean_part).div_((square / square_part).sqrt_().add_(_EPS))
        return change.addcmul_(self._stack.flat, self._decay)


class _Group(NamedTuple):
    kind: str
    lr_scale: float
    weight_decay: float


def _groups(network: nn.Module, recipe: Recipe) -> dict[str, _Group]:
    """The library's parameter group of each parameter that trains."""
    groups = parameter_groups(network, recipe)
    found = {id(p): _Group(*(group[name] for name in _Group._fields)) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in network.named_parameters() if p.requires_grad}


@cache
def _rates(recipe: Recipe, batches: int) -> list[float]:
    """The learning rate of every step, without factors."""
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "kind": "backbone", "weight_decay": 0.0}
    schedule = Schedule(make_optimizer([group], recipe), recipe, batches)
    return [schedule.apply(step) for step in range(batches * recipe.epochs)]
