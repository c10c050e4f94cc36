"""A model's whole state, in and out, whatever its classes make of ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import one_line


def state_of(model: nn.Module) -> dict[str, Any]:
    """Every parameter, persistent buffer and extra state by its name in the model.

    What ``nn.Module.state_dict`` gives. Some classes override that method, and leave out a part that comes from
    elsewhere, or add entries that are no tensors; their conversion has to be stored whole.

    >>> class HeadOnly(nn.Sequential):
    ...     def state_dict(self):
    ...         return self[1].state_dict(prefix="1.")
    >>> list(state_of(HeadOnly(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))))
    ['0.weight', '1.weight']
    """
    if all(type(module).state_dict is nn.Module.state_dict for module in model.modules()):
        return model.state_dict()
    state: Any = OrderedDict()
    state._metadata = OrderedDict()
    _collect(model, state, "")
    whole: dict[str, Any] = state
    return whole


def _collect(module: nn.Module, state: Any, prefix: str) -> None:
    metadata = {"version": module._version}
    state._metadata[prefix[:-1]] = metadata
    for before in module._state_dict_pre_hooks.values():
        before(module, prefix, False)
    module._save_to_state_dict(state, prefix, False)
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, state, f"{prefix}{name}.")
    for after in module._state_dict_hooks.values():
        after(module, state, prefix, metadata)


def put_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a whole state into its place, by assignment: nothing is copied, and types are kept.

    Raises:
        ValueError: a module refuses its part, or a tensor of the model got no values.
    """
    try:
        nn.Module.load_state_dict(model, state, strict=True, assign=True)
    except Exception as error:  # what a module's own way of loading raises
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{type(model).__name__} refuses its state: {reason}") from error
    for name, t in state_of(model).items():
        if isinstance(t, Tensor) and t.is_meta and not state[name].is_meta:
            raise ValueError(f"{name} of {type(model).__name__} takes no values by assignment; load on another class")


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """If the block raises, the model's modules, parameters and buffers are those that they were before.

    >>> layer = nn.Linear(2, 2)
    >>> weight = layer.weight
    >>> try:
    ...     with all_or_nothing(layer):
    ...         layer.weight = nn.Parameter(torch.zeros(2, 2))
    ...         raise KeyError
    ... except KeyError:
    ...     layer.weight is weight
    True
    """
    before = [(module, vars(module).copy(), _contents(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
        raise


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's training flag comes back."""
    flags = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _contents(module: nn.Module) -> dict[str, Any]:
    """Copies of the dicts and sets that hold what a module holds."""
    return {name: value.copy() for name, value in vars(module).items() if isinstance(value, dict | set)}


def copy_of(model: nn.Module, *, values: bool = True, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a model that holds results of its parameters (torch's older weight_norm).

    Args:
        model: the model.
        values: whether the copy has values; otherwise it is on the meta device, and takes no memory.
        memo: of ``copy.deepcopy``; gets the copy of every object by its ``id``.
    """
    memo = {} if memo is None else memo
    for t in (*model.parameters(), *model.buffers(), *_results(model)):
        if id(t) not in memo and not (values and t.is_leaf):
            new = t.detach().clone() if values else torch.empty_like(t, device="meta")
            memo[id(t)] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
    return copy.deepcopy(model, memo)


def _results(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold as plain attributes."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
