"""What people do without a conversion: train or freeze BatchNorm, or put GroupNorm in its place."""

from __future__ import annotations

import copy

from torch import nn

from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.group_norm_target import EPS, GroupNormConfig
from ilmconvert.surgery.replacement import copy_with

#: The baselines of a fine-tuning run, and what they are called in tables.
BASELINES = {
    "train-bn": "BatchNorm, training",
    "frozen-bn": "BatchNorm, statistics frozen",
    "group-norm": "GroupNorm(32), gamma and beta copied",
}


def baseline(source: nn.Module, name: str) -> nn.Module:
    """A copy of ``source`` (with BatchNorm) as one of ``BASELINES``; how its BatchNorm trains is up to the caller.

    >>> type(baseline(nn.Sequential(nn.BatchNorm2d(8)), "group-norm")[0]).__name__
    'GroupNorm'
    """
    if name == "group-norm":
        return group_norm_baseline(source, copy_affine=True)
    return copy.deepcopy(source)


def group_norm_baseline(model: nn.Module, *, num_groups: int | None = 32, copy_affine: bool = False) -> nn.Module:
    """A copy of ``model`` with GroupNorm in the place of every BatchNorm: how layers are usually swapped.

    Fused activations stay. ``num_groups`` becomes the largest divisor of the channels up to it; None is one
    group per channel. ``copy_affine`` takes over gamma and beta; otherwise they start at 1 and 0.

    >>> model = nn.Sequential(nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48))
    >>> group_norm_baseline(model, num_groups=32)[1].num_groups
    24
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    made = copy_with(model, norms, lambda _, norm: _group_norm(norm, num_groups, copy_affine)).eval()
    return note(made, settings={"to": "gn"})


def _group_norm(norm: nn.Module, num_groups: int | None, copy_affine: bool) -> nn.Module:
    assert isinstance(norm, nn.BatchNorm2d)
    channels = norm.num_features
    limit = num_groups or channels
    groups = max(divisor for divisor in range(1, min(limit, channels) + 1) if channels % divisor == 0)
    # a layer of ours, so that a checkpoint can hold it
    new = GroupNormConfig(channels, groups, EPS).build(drop=getattr(norm, "drop", None), act=getattr(norm, "act", None))
    if copy_affine and norm.affine:
        new.load_state_dict({"weight": norm.weight.detach(), "bias": norm.bias.detach()})
    like = norm.weight if norm.affine else norm.running_mean
    if like is not None:
        new.to(like.device, like.dtype)
    return new
