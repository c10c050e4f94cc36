"""The layer that takes a norm's place, with its values and all that was hung on the norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.initialization import beyond
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.source_state import SourceState, accept_source_state
from ilmconvert.surgery.sources import NormDescription

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
# What layers keep on themselves, and no other layer has a use for.
_OF_NORMS = frozenset({"momentum", "track_running_stats", "process_group", "fast_norm", "ilmconvert_plain"})


def new_layer(
    module: nn.Module,
    source: NormDescription,
    config: LayerConfig,
    *,
    fallback: tuple[torch.device, torch.dtype],
    seed: int,
) -> nn.Module:
    """The layer of these settings in the place of ``module``, whose hooks, fused modules and attributes it takes over.

    Args:
        module: the norm; it isn't changed.
        source: what it computes.
        config: the settings of the layer.
        fallback: device and dtype for a norm without tensors.
        seed: of random values.

    Raises:
        ConversionError: the values are beyond the norm's dtype.
    """
    like = source.weight if source.weight is not None else source.running_mean
    device, dtype = fallback if like is None else (like.device, like.dtype)
    layer = config.build(drop=source.drop, act=source.act, device="meta", dtype=dtype)
    values = config.initial_values(source, seed=seed, dtype=dtype)
    problem = beyond(values, dtype)
    if problem:
        raise ConversionError(problem)
    trained = {False: _is_trained(source.weight), True: _is_trained(source.bias)}
    for name, value in values.items():
        stored = value.to(device, dtype)
        if name in layer._buffers:
            layer._buffers[name] = stored
        else:
            layer._parameters[name] = nn.Parameter(stored, requires_grad=trained["bias" in name])
    if isinstance(layer, ILMNorm):
        layer.encoder.requires_grad_(any(trained.values()))
    accept_source_state(layer, SourceState.of(source, seed))
    _adopt_tensors(layer, source)
    adopt(layer, module)
    return layer


def _is_trained(t: Tensor | None) -> bool:
    """Whether what comes from a tensor is trained; buffers are frozen."""
    return True if t is None else t.requires_grad


def _adopt_tensors(layer: nn.Module, source: NormDescription) -> None:
    """Keep the norm's own parameters where their values stay; elsewhere give the new ones what was hung on them."""
    own = {"weight": source.weight, "bias": source.bias}
    for name, new in layer._parameters.items():
        old = own["bias" if "bias" in name else "weight"]
        if new is None or old is None:
            continue
        if source.num_groups is not None and name in own and isinstance(old, nn.Parameter) and old.dtype == new.dtype:
            layer._parameters[name] = old
            continue
        hung = vars(old)
        if name == "encoder":  # it serves both
            other = {} if source.bias is None else vars(source.bias)
            hung = {key: value for key, value in hung.items() if key in other and other[key] is value}
        vars(new).update(hung)
        if name in own:
            _adopt_tensor_hooks(new, old)


def _adopt_tensor_hooks(new: Tensor, old: Tensor) -> None:
    """Give ``new`` the gradient hooks of ``old``, themselves: whoever registered one can still remove it."""
    for name in _TENSOR_HOOKS:
        hooks = getattr(old, name, None)
        if hooks and new.requires_grad:
            setattr(new, name, hooks)


def adopt(layer: nn.Module, module: nn.Module) -> None:
    """Give ``layer`` the training flag, the hooks and the attributes of ``module``, in whose place it comes.

    >>> old, new = nn.Identity(), nn.Identity()
    >>> handle = old.register_forward_hook(lambda module, args, result: result + 1)
    >>> old.lr_mult = 0.5
    >>> adopt(new, old)
    >>> new(1), new.lr_mult
    (2, 0.5)
    """
    layer.training = module.training
    for name in _HOOKS:
        if getattr(module, name, None):
            setattr(layer, name, getattr(module, name))
    layer._is_full_backward_hook = module._is_full_backward_hook
    vars(layer).update(_hung_on(module, layer))


def _hung_on(module: nn.Module, layer: nn.Module) -> dict[str, Any]:
    """The attributes that ``layer`` takes over from ``module``: those that it doesn't define itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in vars(layer) and name not in _OF_NORMS and not hasattr(type(layer), name)
    }
