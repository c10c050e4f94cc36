"""What can be converted: source types and how each describes itself.

The only file that knows the norm classes of torch, timm and torchvision. Types match exactly, never through
``isinstance``: a subclass may compute something else (timm's BatchNormAct2d is a BatchNorm2d that also activates).
Types are known by name, so that a model of one library doesn't need the other one imported. A norm of any other class
is recognised by its values or stays; see :mod:`ilmconvert.surgery.recognize`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery import refuse_wrapped
from ilmconvert.surgery.norm_description import Describe, NormDescription, qualified_name
from ilmconvert.surgery.recognize import Examined, Recognition, examine, has_running_statistics, is_norm_like

__all__ = ["Describe", "NormDescription", "describe_norm", "find_source", "qualified_name", "register_source"]

_registered: dict[type[nn.Module], Describe] = {}


def register_source(source: type[nn.Module], describe: Describe) -> None:
    """Let ``convert`` replace layers of the class ``source``, exactly this class.

    Args:
        source: a subclass of ``nn.Module``.
        describe: takes such a layer, gives its :class:`NormDescription`. Must not change the layer.

    >>> class MyNorm(nn.BatchNorm2d):
    ...     pass
    >>> register_source(MyNorm, describe_batch_norm)
    >>> find_source(MyNorm(8)) is describe_batch_norm
    True
    """
    _registered[source] = describe


def find_source(module: nn.Module) -> Describe | None:
    """The function that describes ``module``, if its exact type is a source or its values show that it is one."""
    describe = _find(type(module))
    if describe is not None:
        return describe
    found = recognition(module)
    return None if found is None else found.describe


def describe_norm(module: nn.Module) -> NormDescription | None:
    """The description of ``module``, checked; None if it is no source.

    Raises:
        ConversionError: what was registered for its class raises, or describes no norm.
    """
    describe = find_source(module)
    if describe is None:
        return None
    name = type(module).__name__
    try:
        found = describe(module)
    except Exception as e:
        message = (str(e).splitlines() or [""])[0]
        raise ConversionError(f"the description of {name} raised {type(e).__name__}: {message}") from e
    if not isinstance(found, NormDescription):
        raise ConversionError(f"the description of {name} returned a {type(found).__name__}, not a NormDescription")
    for role in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(found, role)
        if tensor is not None and tuple(tensor.shape) != (found.num_channels,):
            shape = tuple(tensor.shape)
            raise ConversionError(f"the description of {name} has {found.num_channels} channels and {role} {shape}")
    return found


def recognition(module: nn.Module) -> Recognition | None:
    """What a norm of an unregistered class was found to be by its values, or None."""
    return _examined(module).recognition


_NOT_LOOKED_AT = Examined(None, "it is no norm")
_OTHER_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)


def _examined(module: nn.Module) -> Examined:
    cls = type(module)
    if _find(cls) is not None or cls in _OTHER_NORMS or isinstance(module, (ILMNorm, torch.jit.ScriptModule)):
        return _NOT_LOOKED_AT
    if not is_norm_like(module) or refuse_wrapped.parametrized_error(module) is not None:
        return _NOT_LOOKED_AT
    return examine(module, tuple(name for name, m in module.named_modules() if name and find_source(m) is not None))


def _find(cls: type) -> Describe | None:
    return _registered.get(cls) or _BUILTIN.get(qualified_name(cls))


def describe_batch_norm(m: Any) -> NormDescription:
    """BatchNorm1d/2d/3d, SyncBatchNorm."""
    return NormDescription(m.num_features, m.eps, m.weight, m.bias, m.running_mean, m.running_var)


def describe_batch_norm_act(m: Any) -> NormDescription:
    """timm's BatchNormAct2d and SyncBatchNormAct (whose ``drop`` and ``act`` may be absent)."""
    parts = (m.num_features, m.eps, m.weight, m.bias, m.running_mean, m.running_var)
    return NormDescription(*parts, drop=getattr(m, "drop", None), act=getattr(m, "act", None))


def describe_frozen_batch_norm(m: Any) -> NormDescription:
    """torchvision's FrozenBatchNorm2d: four buffers and eps."""
    return NormDescription(m.weight.numel(), m.eps, m.weight, m.bias, m.running_mean, m.running_var)


def describe_frozen_batch_norm_act(m: Any) -> NormDescription:
    """timm's FrozenBatchNormAct2d, which tells its number of channels only where it was made from another layer."""
    return NormDescription(
        m.weight.numel(), m.eps, m.weight, m.bias, m.running_mean, m.running_var, drop=m.drop, act=m.act
    )


def describe_group_norm(m: Any) -> NormDescription:
    """torch's and timm's GroupNorm, timm's GroupNorm1 and its variant without bias."""
    return NormDescription(m.num_channels, m.eps, m.weight, m.bias, num_groups=m.num_groups)


def describe_group_norm_act(m: Any) -> NormDescription:
    """timm's GroupNormAct and GroupNorm1Act."""
    parts = (m.num_channels, m.eps, m.weight, m.bias)
    return NormDescription(*parts, num_groups=m.num_groups, drop=m.drop, act=m.act)


def describe_instance_norm(m: Any) -> NormDescription:
    """InstanceNorm1d/2d/3d: instance-level unless it tracks running statistics, which evaluation then uses."""
    dims = 1 + m._get_no_batch_dim()
    if m.track_running_stats:
        return replace(describe_batch_norm(m), input_dims=dims)
    return NormDescription(m.num_features, m.eps, m.weight, m.bias, num_groups=m.num_features, input_dims=dims)


_BUILTIN: dict[str, Describe] = {
    **{f"torch.nn.modules.batchnorm.BatchNorm{d}d": describe_batch_norm for d in (1, 2, 3)},
    "torch.nn.modules.batchnorm.SyncBatchNorm": describe_batch_norm,
    **{f"torch.nn.modules.instancenorm.InstanceNorm{d}d": describe_instance_norm for d in (1, 2, 3)},
    "torch.nn.modules.normalization.GroupNorm": describe_group_norm,
    "torchvision.ops.misc.FrozenBatchNorm2d": describe_frozen_batch_norm,
    "timm.layers.norm_act.BatchNormAct2d": describe_batch_norm_act,
    "timm.layers.norm_act.SyncBatchNormAct": describe_batch_norm_act,
    "timm.layers.norm_act.FrozenBatchNormAct2d": describe_frozen_batch_norm_act,
    "timm.layers.norm.GroupNorm": describe_group_norm,
    "timm.layers.norm.GroupNorm1": describe_group_norm,
    "timm.layers.norm_act.GroupNormAct": describe_group_norm_act,
    "timm.layers.norm_act.GroupNorm1Act": describe_group_norm_act,
    "timm.models.metaformer.GroupNorm1NoBias": describe_group_norm,
}

# First match wins; matched against the names of a class and its bases, the class itself first.
_REASONS = (
    (r"^Lazy", "not initialised yet: run one batch through the model first"),
    (
        r"^_(Weight|Spectral)Norm|^_Orthogonal",
        "a parametrisation of weights, not a normalisation of activations",
    ),
    (
        r"^LayerNorm",
        "normalises over the channels at each position; ILM Norm pools over positions, so there is no equivalent",
    ),
    (r"^(Rms|RMS|Simple)Norm", "divides by a root mean square without subtracting the mean"),
    (r"^(EvoNorm|FilterResponseNorm|InplaceAbn)", "has a built-in nonlinearity of its own"),
    (r"^(LocalResponse|GlobalResponse|CrossMapLRN)", "normalises responses by another formula"),
)


def source_base(module: nn.Module) -> type | None:
    """The source type that ``module``'s class derives from, without being one itself."""
    return next((base for base in type(module).__mro__[1:] if _find(base) is not None), None)


def reason_to_skip(module: nn.Module) -> str | None:
    """Why a norm-like module that isn't a source stays as it is; None if it isn't norm-like at all."""
    cls = type(module)
    if isinstance(module, ILMNorm):
        return None
    base = source_base(module)
    if base is not None and not cls.__name__.startswith("Lazy"):
        why = _examined(module).reason
        return f"a subclass of {base.__name__} that nobody registered: {why}; {_cure(cls)}"
    reason = _reason_by_name(tuple(base.__name__ for base in cls.__mro__))
    if reason is not None:
        return reason
    if is_norm_like(module) and not _is_container(module):
        return f"an unknown type: {_examined(module).reason}; {_cure(cls)} if it is a batch or group norm"
    return None


def is_left_behind(module: nn.Module) -> bool:
    """Whether a norm that isn't a source ought to be heard of: it has running statistics, or an unknown formula."""
    if has_running_statistics(module):
        return True
    if type(module) in _OTHER_NORMS or _reason_by_name(tuple(base.__name__ for base in type(module).__mro__)):
        return False
    return source_base(module) is not None or _examined(module).suspect


def _cure(cls: type) -> str:
    return f"ilmconvert.register_source({cls.__name__}, ...)"


@cache  # every module of a model is asked
def _reason_by_name(names: tuple[str, ...]) -> str | None:
    return next((reason for pattern, reason in _REASONS if any(re.match(pattern, name) for name in names)), None)


def _is_container(module: nn.Module) -> bool:
    """Blocks such as ConvNormAct carry "norm" in their name; their norm is one of their children."""
    inner = [m for m in module.modules() if m is not module]
    if any(find_source(m) is not None or is_norm_like(m) for m in inner):
        return True
    return not has_running_statistics(module) and any(m._parameters for m in inner)
