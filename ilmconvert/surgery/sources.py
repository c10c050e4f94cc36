"""What can be converted: source types and how each describes itself.

The only file that knows the norm classes of torch, timm and torchvision. Types match exactly, never through
``isinstance``: a subclass may compute something else (timm's BatchNormAct2d is a BatchNorm2d that also activates).
Types are known by name, so that a model of one library doesn't need the other one imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class NormDescription:
    """What a norm layer computes in evaluation mode.

    Batch-level layers set ``running_mean`` and ``running_var``; instance-level ones set ``num_groups``.

    Attributes:
        num_channels: C.
        eps: added to the variance.
        weight, bias: gamma and beta, (C,), or None for 1 and 0.
        running_mean, running_var: (C,); None for an instance-level layer.
        num_groups: groups of an instance-level layer (C for InstanceNorm); None for a batch-level one.
        drop, act: fused modules that the layer applies to its result, in this order.
    """

    num_channels: int
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_groups: int | None = None
    drop: nn.Module | None = None
    act: nn.Module | None = None


Describe = Callable[[Any], NormDescription]

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
    """The function that describes ``module``, if its exact type is a source."""
    return _find(type(module))


def _find(cls: type) -> Describe | None:
    return _registered.get(cls) or _BUILTIN.get(qualified_name(cls))


def qualified_name(cls: type) -> str:
    """``module.Class``, as errors and plans name a type."""
    return f"{cls.__module__}.{cls.__qualname__}"


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


def describe_group_norm(m: Any) -> NormDescription:
    """torch's and timm's GroupNorm, timm's GroupNorm1 and its variant without bias."""
    return NormDescription(m.num_channels, m.eps, m.weight, m.bias, num_groups=m.num_groups)


def describe_group_norm_act(m: Any) -> NormDescription:
    """timm's GroupNormAct and GroupNorm1Act."""
    parts = (m.num_channels, m.eps, m.weight, m.bias)
    return NormDescription(*parts, num_groups=m.num_groups, drop=m.drop, act=m.act)


def describe_instance_norm(m: Any) -> NormDescription:
    """InstanceNorm1d/2d/3d: instance-level unless it tracks running statistics, which evaluation then uses."""
    if m.track_running_stats:
        return describe_batch_norm(m)
    return NormDescription(m.num_features, m.eps, m.weight, m.bias, num_groups=m.num_features)


_BUILTIN: dict[str, Describe] = {
    **{f"torch.nn.modules.batchnorm.BatchNorm{d}d": describe_batch_norm for d in (1, 2, 3)},
    "torch.nn.modules.batchnorm.SyncBatchNorm": describe_batch_norm,
    **{f"torch.nn.modules.instancenorm.InstanceNorm{d}d": describe_instance_norm for d in (1, 2, 3)},
    "torch.nn.modules.normalization.GroupNorm": describe_group_norm,
    "torchvision.ops.misc.FrozenBatchNorm2d": describe_frozen_batch_norm,
    "timm.layers.norm_act.BatchNormAct2d": describe_batch_norm_act,
    "timm.layers.norm_act.SyncBatchNormAct": describe_batch_norm_act,
    "timm.layers.norm_act.FrozenBatchNormAct2d": describe_batch_norm_act,
    "timm.layers.norm.GroupNorm": describe_group_norm,
    "timm.layers.norm.GroupNorm1": describe_group_norm,
    "timm.layers.norm_act.GroupNormAct": describe_group_norm_act,
    "timm.layers.norm_act.GroupNorm1Act": describe_group_norm_act,
    "timm.models.metaformer.GroupNorm1NoBias": describe_group_norm,
}

_NORM_NAME = re.compile(r"norm|abn", re.IGNORECASE)
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
    base = source_base(module)
    if base is not None and not cls.__name__.startswith("Lazy"):
        return f"a subclass of {base.__name__} that nobody registered: ilmconvert.register_source({cls.__name__}, ...)"
    reason = _reason_by_name(tuple(base.__name__ for base in cls.__mro__))
    if reason is not None:
        return reason
    if _NORM_NAME.search(cls.__name__) and not _is_container(module):
        return f"an unknown type: ilmconvert.register_source({cls.__name__}, ...) if it is a batch or group norm"
    return None


@cache  # every module of a model is asked
def _reason_by_name(names: tuple[str, ...]) -> str | None:
    return next((reason for pattern, reason in _REASONS if any(re.match(pattern, name) for name in names)), None)


def _is_container(module: nn.Module) -> bool:
    """Blocks such as ConvNormAct carry "norm" in their name; their norm is one of their children."""
    return any(True for child in module.children() for _ in child.parameters())
