"""Plain layers in a norm's place: stock GroupNorm, started from the moments of what it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.surgery.initialization import initial_values
from ilmconvert.surgery.sources import NormDescription

KIND = "group_norm"
SETTINGS = frozenset({"kind", "num_channels", "num_groups", "eps"})
#: torch's and timm's own default: with it a file loads into what ``norm_layer="groupnorm"`` builds.
EPS = 1e-5

# On each layer that a conversion made, to tell it from the layers that the model had anyway.
_MARK = "ilmconvert_plain"


def target(source: NormDescription, num_groups: int) -> dict[str, Any]:
    """Settings of the GroupNorm in the place of ``source``.

    A layer that normalises groups itself keeps its eps; of a BatchNorm, whose variances are others, it says nothing.
    """
    eps = EPS if source.num_groups is None else source.eps
    return {"kind": KIND, "num_channels": source.num_channels, "num_groups": num_groups, "eps": eps}


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of a plain layer, not of an ILM Norm."""
    return settings.get("kind") == KIND


def new_layer(settings: Mapping[str, Any], *, fused: bool, dtype: torch.dtype | None = None) -> nn.GroupNorm:
    """A GroupNorm without values, on the meta device; with ``fused`` timm's, which takes a drop and an activation.

    >>> new_layer({"kind": "group_norm", "num_channels": 8, "num_groups": 2, "eps": 1e-5}, fused=False).weight.is_meta
    True
    """
    channels, groups, eps = (settings[key] for key in ("num_channels", "num_groups", "eps"))
    layer: nn.GroupNorm
    if fused:
        from timm.layers import GroupNormAct

        layer = GroupNormAct(channels, groups, eps=eps, apply_act=False, device="meta", dtype=dtype)
    else:
        layer = nn.GroupNorm(groups, channels, eps=eps, device="meta", dtype=dtype)
    setattr(layer, _MARK, True)
    return layer


def values(source: NormDescription, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """``weight`` and ``bias`` of the start from moments, (C,), float64.

    The layer computes what ``source`` does for an instance whose group statistics are those of the training set.
    """
    as_ilm = {**settings, "key_group_size": settings["num_channels"], "reduction": 1, "restore": False}
    found = initial_values(source, as_ilm, seed=0)
    return {name: found[name] for name in ("weight", "bias")}


def is_plain_layer(module: nn.Module) -> bool:
    """Whether ``module`` is a GroupNorm that a conversion made."""
    return isinstance(module, nn.GroupNorm) and getattr(module, _MARK, False) is True


def settings_of(layer: nn.GroupNorm) -> dict[str, Any]:
    """What :func:`new_layer` takes to make such a layer again."""
    return {"kind": KIND, "num_channels": layer.num_channels, "num_groups": layer.num_groups, "eps": layer.eps}
