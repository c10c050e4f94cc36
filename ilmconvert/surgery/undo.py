"""A conversion undone: the norms that there were, where the layers still compute what a norm of that kind can."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.group_norm_target import GroupNormConfig
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.plain_values import fill
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped
from ilmconvert.surgery.replacement import copy_with
from ilmconvert.surgery.source_state import source_state_of
from ilmconvert.surgery.sources import describe_norm
from ilmconvert.surgery.stock_norms import stock_norm


def undo_with(model: nn.Module, source: nn.Module | None, *, partial: bool = False) -> nn.Module:
    """:func:`ilmconvert.undo` with the classes of ``source``'s norms; for None those that the layers remember."""
    refuse_wrapped(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm)}
    if not layers:
        if any(GroupNormConfig.of(m) for m in model.modules()):
            raise ConversionError("the converted layers are stock GroupNorms, which aren't their source: no way back")
        raise ConversionError("the model holds no ILM Norm, so that there is nothing to undo; give a converted one")
    changed = {name: why for name, m in layers.items() if (why := why_not_plain(m)) is not None}
    if changed:
        name, why = next(iter(changed.items()))
        text = f"{len(changed)} of {len(layers)} layers equal no plain norm any more, first {name or 'the root'}: {why}"
        if not partial or len(changed) == len(layers):
            cure = "keep these as they are with partial=True (--partial)"
            if len(changed) == len(layers):
                cure = "take the weights that were converted"
            raise ConversionError(f"{text}; {cure}")
        warnings.warn(f"{text}; they stay", UserWarning, stacklevel=3)
    there = {} if source is None else dict(source.named_modules())
    undone = {name: m for name, m in layers.items() if name not in changed}
    names = {id(m): name for name, m in undone.items()}

    def make(old: nn.Module, copied: nn.Module) -> nn.Module:
        assert isinstance(copied, ILMNorm)
        return _plain(names[id(old)], copied, None if source is None else there)

    result = copy_with(model, undone, make)
    return note(result, noted(model) if changed else replace(noted(model), settings={}))


def why_not_plain(layer: ILMNorm) -> str | None:
    """Why a layer computes what no plain norm does; None if one equals it.

    >>> why_not_plain(ILMNorm(32, 8)) is None
    True
    """
    with torch.no_grad():
        if layer.weight_decoder.any() or layer.bias_decoder.any():
            return "its meta-network isn't zero, so that it adapts to the instance"
        state = source_state_of(layer)
        if layer.restore_weight is None and state is not None and state.has_statistics:
            return "without a restoring path, from moments or annealed, it isn't its source: try ilmconvert collapse"
        if layer.restore_weight is None:
            return None if is_group_norm(layer) else "its variance is the unbiased one"
        if layer.restore_bound is not None or layer.restore_range is not None:
            return "its restoring path has a bound or a range"
        same = (layer.restore_weight, layer.restore_bias)
        if layer.weight is None or not all(t is not None and torch.equal(layer.weight, t) for t in same):
            return "its restoring path isn't the identity any more: it was trained or annealed"
    return None


def is_group_norm(layer: ILMNorm) -> bool:
    """Whether a layer is a GroupNorm: its meta-network and its restoring path are zero.

    >>> is_group_norm(ILMNorm(32, 8)), is_group_norm(ILMNorm(32, 8, correction=1))
    (True, False)
    """
    gains = (layer.weight_decoder, layer.bias_decoder, layer.restore_weight, layer.restore_bias)
    return layer.correction == 0 and not any(t is not None and bool(t.any()) for t in gains)


def _plain(name: str, layer: ILMNorm, there: Mapping[str, nn.Module] | None) -> nn.Module:
    """The norm for one layer, with its fused modules, flags, hooks and attributes."""
    fused = {key: part for key in ("drop", "act") if (part := getattr(layer, key, None)) is not None}
    norm = stock_norm(layer) if there is None else copy.deepcopy(there.get(name) or nn.Identity())
    takes = isinstance(norm, nn.SyncBatchNorm) or all(hasattr(norm, key) for key in fused)
    new = norm
    if takes:
        for key, part in fused.items():
            setattr(norm, key, part)
    elif there is None:
        new = nn.Sequential(norm, *fused.values())
    norm.to(layer.encoder.device, layer.encoder.dtype)
    described = describe_norm(norm)
    if described is None or described.num_channels != layer.num_channels:
        kind = type(norm).__name__ if there is not None and name in there else "nothing"
        raise ConversionError(
            f"the source has {kind} at {name or 'the root'}, not a norm of {layer.num_channels} channels; "
            "give the network that was converted"
        )
    fill(name, norm, described, layer)
    adopt(new, layer)
    others = {part for module in fused.values() for part in module.modules()}
    for part in set(norm.modules()) - others:
        part.training = layer.training
    return new
