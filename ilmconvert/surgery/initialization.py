"""Initial values of a layer that takes a source's place. Pure functions of tensors, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ilmconvert.nn.float64 import float64
from ilmconvert.surgery.sources import NormDescription

# By so much may a group's reference mean magnify the rounding of one of its channels.
_LOST = 64.0


def moments_values(source: NormDescription, num_groups: int, eps: float) -> dict[str, Tensor]:
    """``weight`` and ``bias`` (C,) of a layer of so many groups that starts from the moments of ``source``; float64.

    It computes what a batch-level source does for an instance whose group statistics are those of the training set. Of
    a source that normalises groups itself it takes over gamma and beta.
    """
    channels = source.num_channels
    if source.running_mean is None or source.running_var is None:
        return {"weight": _gamma(source), "bias": _beta(source)}
    a, mean, var = _affine(source)
    ref_mean, ref_var = group_moments(mean, var, num_groups)
    gain = a * _per_channel((ref_var + eps).sqrt(), channels)
    return {"weight": gain, "bias": a * (_per_channel(ref_mean, channels) - mean) + _beta(source)}


def restoring_values(
    source: NormDescription, num_groups: int, eps: float, *, bounded: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Values of a layer with a restoring path that computes the batch-level ``source`` for every input; float64.

    The source computes ``a x + c`` with ``a = gamma / sqrt(running_var + eps)`` and ``c = beta - a running_mean``; the
    layer ``a' = restore_weight / ref_std`` and ``c' = bias - a' ref_mean`` in ``dtype``, or in float32 for types of 16
    bits. A rounding of ``a`` alone would be magnified by the mean, so that the bias is made for ``a'``: the values fit
    each other as they are stored and reckoned with.
    """
    channels, beta = source.num_channels, _beta(source)
    a, mean, var = _affine(source)
    ref_mean, ref_var = group_moments(mean, var, num_groups)
    own = torch.float32 if dtype.itemsize < 4 else dtype
    ref_mean, ref_std = (t.to(dtype).double() for t in (ref_mean, (ref_var + eps).sqrt()))
    std = _per_channel(ref_std, channels)
    gain = (a * std).to(dtype).double()
    scale = (gain.to(own) / std.to(own)).double()
    shift = beta - scale * mean
    taken = [
        (scale.to(own) * _per_channel(m, channels).to(own)).double() for m in (ref_mean, torch.zeros_like(ref_mean))
    ]
    if not bounded:
        # Where one channel's mean would cost another of its group its digits, the reference is zero.
        natural = (scale * mean).abs() + beta.abs() + (scale * std).abs() * torch.finfo(dtype).tiny
        noise = [((shift + t).abs() + t.abs()) / natural.clamp(min=torch.finfo(torch.float64).tiny) for t in taken]
        worst = [n.view(num_groups, -1).amax(1) for n in noise]
        far = (worst[0] > _LOST * worst[1].clamp(min=1)) & ref_mean.isfinite()
        ref_mean = torch.where(far, torch.zeros_like(ref_mean), ref_mean)
        taken[0] = torch.where(_per_channel(far, channels), taken[1], taken[0])
    values = {"weight": gain, "bias": shift + taken[0], "restore_weight": gain.clone(), "restore_bias": gain.clone()}
    return values | {"ref_mean": ref_mean, "ref_std": ref_std}


def key_variances(source: NormDescription, key_groups: int) -> Tensor:
    """The variances (K,) that the key groups have in the training set; 1 where the source doesn't know; float64."""
    if source.running_mean is None or source.running_var is None:
        return torch.ones(key_groups, dtype=torch.float64, device=_gamma(source).device)
    _, mean, var = _affine(source)
    return group_moments(mean, var, key_groups)[1]


def beyond(values: Mapping[str, Tensor], dtype: torch.dtype) -> str | None:
    """What to say of finite values that ``dtype`` can't hold; None where it holds them all."""
    for name, value in values.items():
        if not value.is_meta and not value.to(dtype).isfinite().all():
            cure = "convert the model in float32 or bfloat16, or use to='ilm_in'"
            return f"{name} of its new layer would be beyond {str(dtype).removeprefix('torch.')}; {cure}"
    return None


def group_moments(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of channel groups from those of their channels: (C,) to (num_groups,).

    >>> group_moments(torch.tensor([0., 2.]), torch.tensor([1., 1.]), 1)
    (tensor([1.]), tensor([2.]))
    """
    grouped = mean.view(num_groups, -1)
    group_mean = grouped.mean(1)
    spread = (grouped - group_mean.unsqueeze(1)).square().mean(1)
    return group_mean, var.view(num_groups, -1).mean(1) + spread


def encoder_rows(width: int, key_var: Tensor, seed: int, eps: float) -> Tensor:
    """Rows of E that are alive for a typical instance: (width, K) from the key groups' variances (K,).

    Random signs, but a positive response to the typical variances: a unit that is negative for them would be dead
    for good. The scale 1 / (v + sqrt(v)) keeps the response to v and to m (of the order sqrt(v)) below one.
    Variances below ``eps`` are those of dead channels, and count as ``eps``: the rows have to fit into float16.
    The same seed gives the same rows on every device, whatever the global generator's state.
    """
    if key_var.is_meta:
        return key_var.new_empty(width, key_var.numel())
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = torch.randn(width, key_var.numel(), generator=generator, dtype=torch.float64, device="cpu")
    scaled = key_var.clamp(min=max(eps, torch.finfo(torch.float32).tiny))
    rows = rows / (scaled + scaled.sqrt()) / key_var.numel() ** 0.5
    response = rows @ scaled
    return torch.where(response.unsqueeze(1) < 0, -rows, rows)


def _per_channel(t: Tensor, num_channels: int) -> Tensor:
    return t.unsqueeze(1).expand(-1, num_channels // t.numel()).reshape(num_channels)


def _gamma(source: NormDescription) -> Tensor:
    return _float64(source, source.weight, 1.0)


def _beta(source: NormDescription) -> Tensor:
    return _float64(source, source.bias, 0.0)


def affine(source: NormDescription) -> tuple[Tensor, Tensor]:
    """The affine function ``a x + c`` per channel that a batch-level source computes: a and c, (C,) each, float64.

    >>> affine(NormDescription(1, 0.0, running_mean=torch.tensor([1.0]), running_var=torch.tensor([4.0])))
    (tensor([0.5000], dtype=torch.float64), tensor([-0.5000], dtype=torch.float64))
    """
    a, mean, _ = _affine(source)
    return a, _beta(source) - a * mean


def _affine(source: NormDescription) -> tuple[Tensor, Tensor, Tensor]:
    """The slope a, the running mean and the running variance of a batch-level source, (C,) each."""
    mean, var = _float64(source, source.running_mean, 0.0), _float64(source, source.running_var, 1.0)
    return _gamma(source) / (var + source.eps).sqrt(), mean, var


def _float64(source: NormDescription, t: Tensor | None, default: float) -> Tensor:
    if t is not None:
        return float64(t)
    device = "meta" if source.running_mean is not None and source.running_mean.is_meta else "cpu"
    return torch.full((source.num_channels,), default, dtype=torch.float64, device=device)
