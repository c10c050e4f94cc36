"""A conversion undone: the norms that there were, where the layers still compute what a norm of that kind can."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.norm_description import NormDescription
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped
from ilmconvert.surgery.replacement import copy_with
from ilmconvert.surgery.sources import describe_norm

_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE = 2e-2


def undo_with(model: nn.Module, source: nn.Module | None, *, partial: bool = False) -> nn.Module:
    """:func:`ilmconvert.undo` with the classes of ``source``'s norms; stock ones for None."""
    refuse_wrapped(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm)}
    if not layers:
        raise ConversionError("the model holds no ILM Norm, so that there is nothing to undo; give a converted one")
    if noted(model).init == "moments" or noted(model).settings.get("annealed"):
        raise ConversionError(
            "a conversion from moments, or one whose path was annealed, isn't its source: there is no way back"
        )
    changed = {name: why for name, m in layers.items() if (why := why_not_plain(m)) is not None}
    if changed:
        name, why = next(iter(changed.items()))
        text = f"{len(changed)} of {len(layers)} layers equal no plain norm any more, first {name or 'the root'}: {why}"
        if not partial or len(changed) == len(layers):
            cure = "" if len(changed) == len(layers) else "; keep these as they are with partial=True (--partial)"
            raise ConversionError(text + cure)
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
        if layer.restore_weight is None:
            return None if layer.correction == 0 else "its variance is the unbiased one"
        if layer.restore_bound is not None or layer.restore_range is not None:
            return "its restoring path has a bound or a range"
        same = (layer.restore_weight, layer.restore_bias)
        if layer.weight is None or not all(t is not None and torch.equal(layer.weight, t) for t in same):
            return "its restoring path isn't the identity any more: it was trained or annealed"
    return None


def affine_of(layer: ILMNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) in float64 of a layer that is ``scale * x + shift``.

    A BatchNorm ``a x + c`` becomes ``weight = a ref_std`` and ``bias = a ref_mean + c`` in a conversion with
    ``init="identity"``: a and c follow.
    """
    weight, bias, mean, std = layer.weight, layer.bias, layer.ref_mean, layer.ref_std
    assert weight is not None
    assert bias is not None
    assert mean is not None
    assert std is not None
    repeat = layer.num_channels // layer.num_groups
    scale = weight.detach().double() / std.double().repeat_interleave(repeat)
    return scale, bias.detach().double() - scale * mean.double().repeat_interleave(repeat)


def _plain(name: str, layer: ILMNorm, there: Mapping[str, nn.Module] | None) -> nn.Module:
    """The norm for one layer, with its fused modules, flags, hooks and attributes."""
    fused = [part for key in ("drop", "act") if (part := getattr(layer, key, None)) is not None]
    if there is None:
        norm = _stock(layer)
        new = nn.Sequential(norm, *fused) if fused else norm
    else:
        new = norm = copy.deepcopy(there.get(name) or nn.Identity())
        for key in ("drop", "act"):
            if hasattr(norm, key) and hasattr(layer, key):
                setattr(norm, key, getattr(layer, key))
    norm.to(layer.encoder.device, layer.encoder.dtype)
    described = describe_norm(norm)
    if described is None or described.num_channels != layer.num_channels:
        kind = type(norm).__name__ if there is not None and name in there else "nothing"
        raise ConversionError(
            f"the source has {kind} at {name or 'the root'}, not a norm of {layer.num_channels} channels; "
            "give the network that was converted"
        )
    _fill(name, norm, described, layer)
    adopt(new, layer)
    for part in norm.modules():
        part.training = layer.training
    return new


def _stock(layer: ILMNorm) -> nn.Module:
    """torch's own layer of the kind; of BatchNorms the one for images."""
    if layer.restore_weight is not None:
        return nn.BatchNorm2d(layer.num_channels, layer.eps)
    if layer.input_dims is not None and layer.num_groups == layer.num_channels:
        return _INSTANCE_NORMS[layer.input_dims](layer.num_channels, layer.eps, affine=layer.affine)
    return nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, affine=layer.affine)


@torch.no_grad()
def _fill(name: str, norm: nn.Module, described: NormDescription, layer: ILMNorm) -> None:
    """The values under which ``norm`` computes what ``layer`` does.

    Raises:
        ConversionError: there are none.
    """
    instance = layer.restore_weight is None
    if instance != (described.num_groups is not None) or (instance and described.num_groups != layer.num_groups):
        raise ConversionError(
            f"{name or 'the root'} is a {type(norm).__name__} in the source, and was converted from another kind of "
            "norm; give the network that was converted"
        )
    values = _of_group_norm(layer) if instance else _of_batch_norm(name, layer, described)
    for key, value in values.items():
        own = getattr(norm, key, None)
        if isinstance(own, Tensor):
            own.copy_(value)
    for key in ("weight", "bias"):
        own, trained = getattr(norm, key, None), getattr(layer, key)
        if isinstance(own, nn.Parameter) and trained is not None:
            own.requires_grad_(trained.requires_grad)
    found = describe_norm(norm)
    if not instance and (found is None or not _equals(found, layer)):
        raise ConversionError(f"{name or 'the root'}: a {type(norm).__name__} can't hold what the layer computes")


def _of_group_norm(layer: ILMNorm) -> dict[str, Tensor]:
    return {key: t for key in ("weight", "bias") if (t := getattr(layer, key)) is not None}


def _of_batch_norm(name: str, layer: ILMNorm, described: NormDescription) -> dict[str, Tensor]:
    """Running statistics of the groups, and gamma and beta for these; without gamma the only ones that there are."""
    scale, shift = affine_of(layer)
    if described.weight is None:
        var, mean = scale.square().reciprocal() - described.eps, -shift / scale
        if not (scale > 0).all() or not (var >= 0).all():
            raise ConversionError(f"{name or 'the root'} was trained, and the source has no gamma and beta")
        return {"running_mean": mean, "running_var": var}
    assert layer.ref_mean is not None
    assert layer.ref_std is not None
    repeat = layer.num_channels // layer.num_groups
    mean, std = (t.double().repeat_interleave(repeat) for t in (layer.ref_mean, layer.ref_std))
    var = (std.square() - described.eps).clamp(min=0)
    return {
        "running_mean": mean,
        "running_var": var,
        "weight": scale * (var + described.eps).sqrt(),
        "bias": shift + scale * mean,
    }


def _equals(found: NormDescription, layer: ILMNorm) -> bool:
    assert found.running_mean is not None
    assert found.running_var is not None
    ones = torch.ones_like(found.running_mean)
    weight, bias = (ones if found.weight is None else found.weight), (0 * ones if found.bias is None else found.bias)
    scale = weight.double() / (found.running_var.double() + found.eps).sqrt()
    products = scale * found.running_mean.double()
    expected_scale, expected_shift = affine_of(layer)
    limit = _ROUNDING.get(layer.encoder.dtype, _COARSE)
    error = bias.double() - products - expected_shift
    return bool(
        ((scale - expected_scale).abs() <= limit * expected_scale.abs()).all()
        and (error.abs() <= limit * (bias.double().abs() + products.abs() + expected_shift.abs())).all()
    )
