"""Norms of classes that nobody registered, recognised by what they compute; never by their names alone.

A module that looks like a norm (by its class or a base class, or by running statistics that it holds) is copied, filled
with random values and run on random inputs. Where its outputs are those of BatchNorm with running statistics,
GroupNorm, InstanceNorm or LayerNorm over (C, H, W), for every input and any values, it is one.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ilmconvert.surgery.find_formula import find_formula, works_with_calls_alone
from ilmconvert.surgery.formula_search import Formula, Other
from ilmconvert.surgery.norm_description import NormDescription
from ilmconvert.surgery.probe import CannotProbe, fingerprint, lookup, tensors_of

_NORM_NAME = re.compile(r"[Nn]orm|NORM|A?BN|(?:^|_)bn|[GL]N$|(?<![A-Z])IN$")
_REMEMBERED = 512
_MAX_TENSORS = 10


@dataclass(frozen=True)
class Recognition:
    """What a module of an unregistered class was found to be."""

    formula: Formula

    def describe(self, module: Any) -> NormDescription:
        """The description of ``module``, whose class and settings are those that were examined."""
        f = self.formula
        weight, bias, mean, var = (
            None if role not in f.tensors else _vector(module, f.tensors[role])
            for role in ("weight", "bias", "running_mean", "running_var")
        )
        act = copy.deepcopy(f.stock_act) if f.act is None else module._modules[f.act]
        dims = 1 + module._get_no_batch_dim() if isinstance(module, _InstanceNorm) else None
        return NormDescription(f.num_channels, f.eps, weight, bias, mean, var, f.num_groups, act=act, input_dims=dims)

    def __str__(self) -> str:
        f = self.formula
        if f.num_groups is None:
            kind = "BatchNorm with running statistics"
        elif f.num_groups == f.num_channels:
            kind = "InstanceNorm"
        elif f.num_groups == 1:
            kind = "LayerNorm over all channels and positions"
        else:
            kind = f"GroupNorm with {f.num_groups} groups"
        act = "" if f.stock_act is None else f", then {f.stock_act}"
        return f"{kind}, eps {f.eps:.6g}{f', then {f.act}' if f.act else act}"


@dataclass(frozen=True)
class Examined:
    """What came of looking at a module.

    Attributes:
        recognition: what it is, or None.
        reason: why there is no recognition.
        suspect: it may still be a norm of the instance or the batch, of a formula that is unknown here.
    """

    recognition: Recognition | None
    reason: str = ""
    suspect: bool = False


_examined: OrderedDict[tuple[Any, ...], Examined] = OrderedDict()


def examine(module: nn.Module, inner: tuple[str, ...] = ()) -> Examined:
    """Hold ``module`` against the formulas; remembered for its class and settings, whatever its values.

    Args:
        module: isn't changed.
        inner: the names of norms inside it that can be converted themselves. It is taken as a whole only if it can't
            do without them, since it reads their attributes.

    >>> import torch
    >>> class Frozen(nn.Module):
    ...     def __init__(self, n):
    ...         super().__init__()
    ...         self.register_buffer("running_mean", torch.zeros(n))
    ...         self.register_buffer("running_var", torch.ones(n))
    ...     def forward(self, x):
    ...         mean, var = (t.view(-1, 1, 1) for t in (self.running_mean, self.running_var))
    ...         return (x - mean) * (var + 1e-3).rsqrt()
    >>> print(examine(Frozen(8)).recognition)
    BatchNorm with running statistics, eps 0.001
    """
    if sum(1 for _ in islice(tensors_of(module), _MAX_TENSORS + 1)) > _MAX_TENSORS:
        return Examined(None, "it holds more than a norm does")
    if any(nn.parameter.is_lazy(t) for _, t in tensors_of(module)):
        return Examined(None, "it isn't initialised yet: run one batch through the model first")
    settings = fingerprint(module)
    if settings is None:
        return _examine(module, inner)
    key = (settings, inner)
    if key not in _examined:
        _examined[key] = _examine(module, inner)
        while len(_examined) > _REMEMBERED:
            _examined.popitem(last=False)
    return _examined[key]


def _examine(module: nn.Module, inner: tuple[str, ...]) -> Examined:
    acts = [name for name, m in module._modules.items() if m is not None and _may_be_act(m)]
    try:
        with torch.device("cpu"):  # where the copy is, whatever the default device
            found = find_formula(module, acts)
            if isinstance(found, Formula) and inner and works_with_calls_alone(module, inner):
                return Examined(None, "the norm inside it is converted")
    except CannotProbe as e:
        return Examined(None, str(e), suspect=e.norm_like)
    if isinstance(found, Formula):
        return Examined(Recognition(found))
    return Examined(None, found.value, suspect=found in (Other.UNKNOWN, Other.REFUSES))


def is_norm_like(module: nn.Module) -> bool:
    """Whether ``module`` is worth a look: named or derived like a norm, or with running statistics of its own.

    >>> is_norm_like(nn.LayerNorm(8)), is_norm_like(nn.Conv2d(3, 8, 1))
    (True, False)
    """
    return _named_like_norm(tuple(base.__name__ for base in type(module).__mro__)) or has_running_statistics(module)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether ``module`` itself holds buffers named like the running mean and variance of a BatchNorm."""
    names = [name.lower() for name, buffer in module._buffers.items() if buffer is not None]
    named = any("mean" in name for name in names) and any("var" in name or "std" in name for name in names)
    return named or any("running" in name for name in names)


@cache  # every module of a model is asked
def _named_like_norm(names: tuple[str, ...]) -> bool:
    return any(map(_NORM_NAME.search, names))


def _may_be_act(module: nn.Module) -> bool:
    """Whether ``module`` holds no norm, and nothing that mixes channels."""
    return not any(is_norm_like(m) for m in module.modules()) and all(t.dim() <= 1 for _, t in tensors_of(module))


def _vector(module: nn.Module, name: str) -> Tensor:
    """A tensor of C elements as (C,), which trains as the original does."""
    tensor = lookup(module, name)
    if tensor.dim() == 1:
        return tensor
    return tensor.detach().reshape(-1).requires_grad_(tensor.requires_grad)
