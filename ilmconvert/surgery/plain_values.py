"""The values under which a plain norm computes what a layer of a conversion does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.float64 import float64
from ilmconvert.surgery.new_layers import adopt_tensor_hooks
from ilmconvert.surgery.norm_description import NormDescription
from ilmconvert.surgery.sources import describe_norm
from ilmconvert.surgery.stock_norms import can_hold
from ilmconvert.surgery.targets import config_of

_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE = 2e-2
_STORED = ("weight", "restore_weight", "restore_bias", "ref_mean", "ref_std")


def fill(name: str, norm: nn.Module, described: NormDescription, layer: ILMNorm) -> None:
    """Give ``norm`` the values under which it computes what ``layer`` does, and what hangs on the layer's parameters.

    Where ``norm`` holds those of the source already, its statistics and gamma stay as they are, to the last bit.

    Args:
        name: of the layer, for messages.
        norm: changed in place; of the layer's type and device.
        described: what it computes.
        layer: one that equals a plain norm.

    Raises:
        ConversionError: the norm is of another kind, or can't hold such values.
    """
    instance = layer.restore_weight is None
    if instance != (described.num_groups is not None) or (instance and described.num_groups != layer.num_groups):
        raise ConversionError(
            f"{name or 'the root'} is a {type(norm).__name__} in the source, and was converted from another kind of "
            "norm; give the network that was converted"
        )
    if not instance:
        _fill_batch_norm(name, norm, described, layer)
        return
    if not can_hold(norm, layer):
        raise ConversionError(f"{name or 'the root'} was trained, and the source has no gamma and beta")
    for key in ("weight", "bias"):  # they mean the same in both: the parameters go on, tied to others as they are
        own, trained = norm._parameters.get(key), layer._parameters.get(key)
        if own is not None and trained is not None:
            norm._parameters[key] = trained


def _fill_batch_norm(name: str, norm: nn.Module, described: NormDescription, layer: ILMNorm) -> None:
    of_source = _of_source(layer, described)
    values = _of_groups(name, layer, described) if of_source is None else of_source
    with torch.no_grad():
        for key, value in values.items():
            own = getattr(norm, key, None)
            if isinstance(own, Tensor):
                own.copy_(value)
    for key in ("weight", "bias"):
        own, trained = getattr(norm, key, None), getattr(layer, key)
        if isinstance(own, nn.Parameter) and trained is not None:
            own.requires_grad_(trained.requires_grad)
            vars(own).update(vars(trained))
            adopt_tensor_hooks(own, trained)
    if of_source is None and not _equals(describe_norm(norm), layer):
        raise ConversionError(f"{name or 'the root'}: a {type(norm).__name__} can't hold what the layer computes")


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
    scale = float64(weight) / float64(std).repeat_interleave(repeat)
    return scale, float64(bias) - scale * float64(mean).repeat_interleave(repeat)


def _of_groups(name: str, layer: ILMNorm, described: NormDescription) -> dict[str, Tensor]:
    """The statistics of the groups, with gamma and beta for these; without gamma the only ones that there are."""
    scale, shift = affine_of(layer)
    if described.weight is None:
        var, mean = scale.square().reciprocal() - described.eps, -shift / scale
        if not (scale > 0).all() or not (var >= 0).all():
            raise ConversionError(f"{name or 'the root'} was trained, and the source has no gamma and beta")
        return {"running_mean": mean, "running_var": var}
    assert layer.ref_mean is not None
    assert layer.ref_std is not None
    repeat = layer.num_channels // layer.num_groups
    mean, std = (float64(t).repeat_interleave(repeat) for t in (layer.ref_mean, layer.ref_std))
    var = (std.square() - described.eps).clamp(min=0)
    return {
        "running_mean": mean,
        "running_var": var,
        "weight": scale * (var + described.eps).sqrt(),
        "bias": shift + scale * mean,
    }


def _of_source(layer: ILMNorm, described: NormDescription) -> dict[str, Tensor] | None:
    """What to change in the very norm that was converted: nothing, or its beta where the layer's bias was trained."""
    config, weight, bias = config_of(layer), layer.weight, layer.bias
    assert config is not None
    assert weight is not None
    assert bias is not None
    values = {key: t.to(weight.dtype) for key, t in config.initial_values(described, dtype=weight.dtype).items()}
    if not all(torch.equal(values[key], getattr(layer, key).detach().cpu()) for key in _STORED):
        return None
    if torch.equal(values["bias"], bias.detach().cpu()):
        return {}
    if described.bias is None or described.running_mean is None:
        return None
    return {"bias": float64(described.bias) + (float64(bias) - float64(values["bias"]))}


def _equals(found: NormDescription | None, layer: ILMNorm) -> bool:
    if found is None or found.running_mean is None or found.running_var is None:
        return False
    mean, var = float64(found.running_mean), float64(found.running_var)
    weight = torch.ones_like(mean) if found.weight is None else float64(found.weight)
    bias = torch.zeros_like(mean) if found.bias is None else float64(found.bias)
    scale = weight / (var + found.eps).sqrt()
    products = scale * mean
    expected_scale, expected_shift = affine_of(layer)
    limit = _ROUNDING.get(layer.encoder.dtype, _COARSE)
    error = bias - products - expected_shift
    return bool(
        ((scale - expected_scale).abs() <= limit * expected_scale.abs()).all()
        and (error.abs() <= limit * (bias.abs() + products.abs() + expected_shift.abs())).all()
    )
