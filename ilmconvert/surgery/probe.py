"""A copy of a module of unknown formula that can be filled with values and run, without a trace on the module."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MANAGED = ("_parameters", "_buffers", "_modules")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)


class CannotProbe(Exception):
    """Why a module can't be run on its own; one line. ``norm_like``: it may be a norm all the same."""

    def __init__(self, message: str, *, norm_like: bool = False) -> None:
        super().__init__(message)
        self.norm_like = norm_like


class Probe:
    """A copy of ``module`` on the CPU, in evaluation mode, of one floating-point type, without hooks.

    Its vectors (the tensors with one element a channel) hold no values until :meth:`fill`; everything else is as in
    the module.

    Args:
        module: a module that holds vectors of one size only, and scalars.
        dtype: of all floating-point tensors of the copy.

    Raises:
        CannotProbe: the module is no such one, or its copy could touch what belongs to others.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.module = _copy(module, dtype)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Set tensors, by their dotted names, to values of as many elements."""
        for name, value in values.items():
            tensor = lookup(self.module, name)
            tensor.copy_(value.reshape(tensor.shape))

    def run(self, x: Tensor) -> Tensor | None:
        """The module's output in float64; None where it doesn't take ``x`` or gives no tensor of its shape."""
        with torch.no_grad(), warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")
            try:
                y = self.module(x.to(self.dtype, copy=True))
            except Exception:  # modules refuse a shape in as many ways as there are
                return None
        same = isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point()
        return y.double() if same else None


def lookup(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this dotted name, even where a property hides it.

    >>> lookup(nn.Sequential(nn.BatchNorm2d(3)), "0.running_var")
    tensor([1., 1., 1.])
    """
    *path, last = name.split(".")
    for part in path:
        child = module._modules[part]
        assert child is not None
        module = child
    tensor = module._parameters[last] if last in module._parameters else module._buffers[last]
    assert tensor is not None
    return tensor


def tensors_of(module: nn.Module, prefix: str = "", skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by its dotted name; without what stands in the direct children ``skip``."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield f"{prefix}{name}", tensor
    for name, child in module._modules.items():
        if child is not None and name not in skip:
            yield from tensors_of(child, f"{prefix}{name}.")


def other_inputs(module: nn.Module) -> list[str]:
    """What ``module.forward`` takes beside its first argument, settings with a plain default excepted.

    >>> class OfGraphs(nn.Module):
    ...     def forward(self, x, batch=None, eps=1e-5):
    ...         return x
    >>> other_inputs(OfGraphs())
    ['batch']
    """
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    except (TypeError, ValueError):  # not a Python function
        return []
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = (bool, int, float, str)
    return [p.name for p in parameters if p.kind not in varying and not isinstance(p.default, plain)]


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if "forward" in module.__dict__:
        raise CannotProbe("its forward was set on the instance")
    clone: nn.Module = object.__new__(type(module))
    state: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name in _MANAGED:
            continue
        state[name] = OrderedDict() if name.endswith("_hooks") or "_hooks_" in name else _own(value, dtype)
    state["training"] = False
    state["_parameters"] = {
        k: None if p is None else nn.Parameter(_own(p.detach(), dtype), requires_grad=False)
        for k, p in module._parameters.items()
    }
    state["_buffers"] = {k: _own(b, dtype) for k, b in module._buffers.items()}
    state["_modules"] = {k: None if m is None else _copy(m, dtype) for k, m in module._modules.items()}
    clone.__dict__.update(state)
    return clone


def _own(value: Any, dtype: torch.dtype) -> Any:
    """``value`` for the copy alone: settings copied, tensors as the probe needs them, all else shared."""
    if isinstance(value, Tensor):
        return _own_tensor(value, dtype)
    if isinstance(value, nn.Module) or isinstance(getattr(value, "__self__", None), nn.Module):
        raise CannotProbe("it holds a module that isn't registered in it")
    if isinstance(value, (list, tuple, set, dict)):
        parts = [*value.values()] if isinstance(value, dict) else [*value]
        for part in parts:
            _own(part, dtype)
        return _on_cpu(value)
    return value


def _on_cpu(value: Any) -> Any:
    """A container for the copy alone, with the tensors in it where the copy runs, at any depth."""
    if isinstance(value, Tensor):
        return value if value.is_meta or value.device.type == "cpu" else value.detach().cpu()
    if type(value) in (list, tuple):
        return type(value)(map(_on_cpu, value))
    if not isinstance(value, (list, tuple, set, dict)):
        return value
    made = copy.copy(value)
    if isinstance(made, dict):
        made.update({name: _on_cpu(part) for name, part in made.items()})
    return made


def _own_tensor(value: Tensor, dtype: torch.dtype) -> Tensor:
    own = dtype if value.is_floating_point() else value.dtype
    if value.is_meta:
        # Vectors are filled and counters aren't read in evaluation; no scalar can be made up.
        if value.is_floating_point() and not value.dim():
            raise CannotProbe("it holds a scalar without a value")
        return torch.zeros(value.shape, dtype=own)
    return value.detach().to("cpu", own, copy=True)


def fingerprint(module: nn.Module) -> tuple[Any, ...] | None:
    """What tells apart two modules that compute differently with the same values; None where that can't be told.

    >>> fingerprint(nn.GroupNorm(2, 8)) == fingerprint(nn.GroupNorm(2, 8))
    True
    >>> fingerprint(nn.GroupNorm(2, 8)) == fingerprint(nn.GroupNorm(4, 8))
    False
    """
    whole = _configuration(module)
    try:
        hash(whole)
    except TypeError:
        return None
    return whole


def _configuration(module: nn.Module) -> tuple[Any, ...]:
    hidden = (*_MANAGED, "training")
    settings = tuple((k, _frozen(v)) for k, v in module.__dict__.items() if k not in hidden and "_hooks" not in k)
    tensors = tuple(
        (k, None if t is None else (t.shape, _value(t)))
        for k, t in (*module._parameters.items(), *module._buffers.items())
    )
    children = tuple((k, None if m is None else _configuration(m)) for k, m in module._modules.items())
    return type(module), type(module).forward, settings, tensors, children


def _value(tensor: Tensor) -> object:
    """Scalars count with their value: one may be an eps, or the slope of an activation."""
    if tensor.numel() != 1 or not tensor.is_floating_point():
        return None
    return tensor.device if tensor.is_meta else tensor.item()


def _frozen(value: Any) -> Any:
    """``value`` so that equal settings are equal; objects count by their identity."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, dict):
        return dict, tuple((k, _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(v) for v in value)
    if isinstance(value, (set, frozenset)):
        return set, frozenset(value)
    return value
