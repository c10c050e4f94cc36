"""Initial values of an ILM Norm layer that takes a source's place. Pure functions of tensors, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ilmconvert.surgery.sources import NormDescription

# By so much may a group's reference mean magnify the rounding of one of its channels.
_LOST = 64.0


def initial_values(
    source: NormDescription, settings: dict[str, object], seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Parameters of ``ILMNorm(**settings)`` in the place of ``source``; float64 on the CPU, to be stored as ``dtype``.

    A batch-level source computes ``a x + c`` with ``a = gamma / sqrt(running_var + eps)`` and
    ``c = beta - a running_mean``. With ``restore`` the layer computes the same for every input; without it (the
    paper's layer) only for an instance whose group statistics are those of the training set.
    """
    channels, groups = source.num_channels, int(settings["num_groups"])  # type: ignore[call-overload]
    gamma = _float64(source.weight, channels, 1.0)
    beta = _float64(source.bias, channels, 0.0)
    key_size = int(settings["key_group_size"])  # type: ignore[call-overload]
    key_groups = channels // key_size
    width = max(2, key_groups // int(settings["reduction"]))  # type: ignore[call-overload]
    if source.running_mean is None or source.running_var is None:
        values = {"weight": gamma, "bias": beta}
        key_var = torch.ones(key_groups, dtype=torch.float64, device=gamma.device)
    else:
        mean = _float64(source.running_mean, channels, 0.0)
        var = _float64(source.running_var, channels, 1.0)
        a = gamma / (var + source.eps).sqrt()
        ref_mean, ref_var = group_moments(mean, var, groups)
        ref_std = (ref_var + float(settings["eps"])).sqrt()  # type: ignore[arg-type]
        if settings["restore"]:
            values = _restoring_values(a, beta, mean, ref_mean, ref_std, settings, dtype)
        else:
            gain = a * _per_channel(ref_std, channels)
            values = {"weight": gain, "bias": a * (_per_channel(ref_mean, channels) - mean) + beta}
        key_var = ref_var if key_groups == groups else group_moments(mean, var, key_groups)[1]
    values["encoder"] = encoder_rows(width, key_var, seed, float(settings["eps"]))  # type: ignore[arg-type]
    for name in ("weight_decoder", "bias_decoder"):
        values[name] = torch.zeros(key_groups, width, dtype=torch.float64, device=gamma.device)
    return values


def _restoring_values(
    a: Tensor,
    beta: Tensor,
    mean: Tensor,
    ref_mean: Tensor,
    ref_std: Tensor,
    settings: dict[str, object],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Values that fit each other as they are stored and reckoned with, so that ``a' x + c'`` is right together.

    The layer computes ``a' = restore_weight / ref_std`` and ``c' = bias - a' ref_mean`` in ``dtype``, or in float32 for
    types of 16 bits. A rounding of ``a`` alone would be magnified by the mean, so that the bias is made for ``a'``.
    """
    channels = len(a)
    own = torch.float32 if dtype.itemsize < 4 else dtype
    ref_mean, ref_std = (t.to(dtype).double() for t in (ref_mean, ref_std))
    std = _per_channel(ref_std, channels)
    gain = (a * std).to(dtype).double()
    scale = (gain.to(own) / std.to(own)).double()
    shift = beta - scale * mean
    taken = [
        (scale.to(own) * _per_channel(m, channels).to(own)).double() for m in (ref_mean, torch.zeros_like(ref_mean))
    ]
    if settings.get("restore_bound") is None:
        # Where one channel's mean would cost another of its group its digits, the reference is zero.
        natural = (scale * mean).abs() + beta.abs() + (scale * std).abs() * torch.finfo(dtype).tiny
        noise = [((shift + t).abs() + t.abs()) / natural.clamp(min=torch.finfo(torch.float64).tiny) for t in taken]
        worst = [n.view(len(ref_mean), -1).amax(1) for n in noise]
        far = (worst[0] > _LOST * worst[1].clamp(min=1)) & ref_mean.isfinite()
        ref_mean = torch.where(far, torch.zeros_like(ref_mean), ref_mean)
        taken[0] = torch.where(_per_channel(far, channels), taken[1], taken[0])
    values = {"weight": gain, "bias": shift + taken[0], "restore_weight": gain.clone(), "restore_bias": gain.clone()}
    return values | {"ref_mean": ref_mean, "ref_std": ref_std}


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
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, key_var.numel(), generator=generator, dtype=torch.float64)
    scaled = key_var.clamp(min=max(eps, torch.finfo(torch.float32).tiny))
    rows = rows / (scaled + scaled.sqrt()) / key_var.numel() ** 0.5
    response = rows @ scaled
    return torch.where(response.unsqueeze(1) < 0, -rows, rows)


def _per_channel(t: Tensor, num_channels: int) -> Tensor:
    return t.unsqueeze(1).expand(-1, num_channels // t.numel()).reshape(num_channels)


def _float64(t: Tensor | None, num_channels: int, default: float) -> Tensor:
    if t is None:
        return torch.full((num_channels,), default, dtype=torch.float64)
    t = t.detach()
    # Not every accelerator has float64; the tensors are small.
    return (t if t.is_meta else t.cpu()).double()
