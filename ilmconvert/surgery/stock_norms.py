"""New norms of the libraries' own classes, in the place of a layer that a conversion made of one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.source_state import source_state_of

_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_TORCH, _TIMM = "torch.nn.modules.", "timm.layers."
# What a class is called with, beside channels and eps, by how classes are called.
_AFFINE, _GROUPS, _PLAIN = ("affine",), ("num_groups", "affine"), ()
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **{f"{_TORCH}batchnorm.{name}": _AFFINE for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")},
    **{f"{_TORCH}instancenorm.InstanceNorm{d}d": ("affine", "track_running_stats") for d in (1, 2, 3)},
    f"{_TORCH}normalization.GroupNorm": _GROUPS,
    "torchvision.ops.misc.FrozenBatchNorm2d": _PLAIN,
    f"{_TIMM}norm_act.BatchNormAct2d": ("affine", "apply_act"),
    f"{_TIMM}norm_act.SyncBatchNormAct": _AFFINE,
    f"{_TIMM}norm_act.FrozenBatchNormAct2d": ("apply_act",),
    f"{_TIMM}norm.GroupNorm": _GROUPS,
    f"{_TIMM}norm.GroupNorm1": _AFFINE,
    f"{_TIMM}norm_act.GroupNormAct": (*_GROUPS, "apply_act"),
    f"{_TIMM}norm_act.GroupNorm1Act": ("affine", "apply_act"),
    "timm.models.metaformer.GroupNorm1NoBias": _AFFINE,
}


def stock_norm(layer: ILMNorm) -> nn.Module:
    """A new norm of the class that ``layer`` replaced, its fused modules not in it; its values are to be filled in.

    Of a class that isn't torch's, timm's or torchvision's own, torch's layer of the kind.

    >>> from ilmconvert import convert
    >>> type(stock_norm(convert(nn.GroupNorm(4, 8)))).__name__
    'GroupNorm'
    """
    state = source_state_of(layer)
    if state is None or state.norm not in _ARGUMENTS:
        return _of_the_kind(layer)
    module, _, name = state.norm.rpartition(".")
    weight = layer.weight
    known: dict[str, Any] = {
        # running statistics alone can't turn a sign
        "affine": state.affine or (state.has_statistics and weight is not None and bool((weight <= 0).any())),
        "num_groups": layer.num_groups,
        "track_running_stats": state.has_statistics,
        "apply_act": False,
    }
    channels = "num_features" if state.has_statistics or "Instance" in name else "num_channels"
    arguments = {channels: layer.num_channels, "eps": state.eps if state.has_statistics else layer.eps}
    cls = getattr(import_module(module), name)
    norm: nn.Module = cls(**arguments, **{key: known[key] for key in _ARGUMENTS[state.norm]})
    return norm if state.has_statistics or can_hold(norm, layer) else _of_the_kind(layer)


def can_hold(norm: nn.Module, layer: ILMNorm) -> bool:
    """Whether ``norm`` has a gamma and a beta where those of ``layer``, a GroupNorm, aren't 1 and 0."""
    return all(
        isinstance(getattr(norm, key, None), nn.Parameter) or t is None or bool((t == neutral).all())
        for key, t, neutral in (("weight", layer.weight, 1), ("bias", layer.bias, 0))
    )


def _of_the_kind(layer: ILMNorm) -> nn.Module:
    """torch's own layer of the kind; of BatchNorms the one for images."""
    if layer.restore_weight is not None:
        return nn.BatchNorm2d(layer.num_channels, layer.eps)
    if layer.input_dims is not None and layer.num_groups == layer.num_channels:
        return _INSTANCE_NORMS[layer.input_dims](layer.num_channels, layer.eps, affine=layer.affine)
    return nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, affine=layer.affine)
