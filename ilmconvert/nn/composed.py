"""ILM Norm composed of differentiable operations: what compilers, exporters and ``torch.func`` see."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.kernels import autograd
from ilmconvert.nn.kernels.formulas import merge_moments
from ilmconvert.nn.restore_range import RestoreRange, image_into_range, into_range


def composed(x: Tensor, t: Tensors, s: Settings) -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` for checked arguments."""
    # an image's range is about its channels
    finest = x.shape[1] if isinstance(s.restore_range, RestoreRange) else s.finest
    mean, var = autograd.moments(x, finest)
    count = prod(x.shape[2:]) * (x.shape[1] // finest)
    mu, var_g = _corrected(mean, var, s.num_groups, count, s.correction)
    sigma = (var_g + s.eps).sqrt()
    if t.encoder is None:
        nothing = mu.new_zeros(1, 1)
        omega, beta = _add_groups(t.weight, nothing, x.shape[1], 1.0), _add_groups(t.bias, nothing, x.shape[1], 0.0)
    else:
        omega, beta = _rescale(*_corrected(mean, var, s.num_key_groups, count, s.correction), t, x.shape[1])
    if t.restore_weight is not None and t.ref_mean is not None and t.ref_std is not None:
        ref_mean, ref_std = t.ref_mean.to(mu.dtype), t.ref_std.to(mu.dtype)
        kept_mu, kept_sigma = mu, sigma
        if isinstance(s.restore_range, RestoreRange):
            kept_mu, kept_sigma = image_into_range(mean, var, mu, sigma, ref_mean, ref_std, s.eps, s.restore_range)
        elif s.restore_range is not None:
            kept_mu, kept_sigma = into_range(mu, sigma, ref_mean, ref_std, s.restore_range)
        omega = _restore(omega, t.restore_weight, _deviation(kept_sigma, ref_std, ref_std), s.restore_bound)
        beta = _restore(beta, t.restore_bias, _deviation(kept_mu, ref_mean, ref_std), s.restore_bound)
    scale = omega.unflatten(1, (s.num_groups, -1)) / sigma.unsqueeze(2)
    shift = torch.addcmul(beta.unflatten(1, (s.num_groups, -1)), scale, mu.unsqueeze(2), value=-1)
    return autograd.scale_shift(x, scale.flatten(1), shift.flatten(1))


def _corrected(mean: Tensor, var: Tensor, num_groups: int, count: int, correction: int) -> tuple[Tensor, Tensor]:
    """Moments of ``num_groups`` groups from the finest ones, which hold ``count`` elements each."""
    total = count * (mean.shape[1] // num_groups)
    mean, var = merge_moments(mean, var, num_groups)
    if correction and total > correction:
        var = var * (total / (total - correction))
    return mean, var


def _rescale(key_mean: Tensor, key_var: Tensor, t: Tensors, num_channels: int) -> tuple[Tensor, Tensor]:
    """The meta-network: omega and beta (N, C) from the key features (N, K)."""
    assert t.encoder is not None
    assert t.weight_decoder is not None
    assert t.bias_decoder is not None
    dtype = key_mean.dtype
    code_var, code_mean = F.linear(torch.stack((key_var, key_mean)), t.encoder.to(dtype)).relu()
    omega = F.linear(code_var, t.weight_decoder.to(dtype)).sigmoid() - 0.5
    beta = F.linear(code_mean, t.bias_decoder.to(dtype)).tanh()
    return _add_groups(t.weight, omega, num_channels, 1.0), _add_groups(t.bias, beta, num_channels, 0.0)


def _add_groups(base: Tensor | None, values: Tensor, num_channels: int, default: float) -> Tensor:
    """(C,) plus (N, K), each key group's value repeated over its channels: (N, C)."""
    groups = values.shape[1]
    if base is None:
        base = values.new_full((num_channels,), default)
    return (base.to(values.dtype).view(groups, -1) + values.unsqueeze(2)).flatten(1)


def _deviation(kept: Tensor, ref: Tensor, ref_std: Tensor) -> Tensor:
    """``(kept - ref) / ref_std`` for ``kept`` of the groups (N, G) or of their channels (N, C)."""
    size = kept.shape[1] // ref.shape[0]
    if size > 1:
        ref, ref_std = ref.repeat_interleave(size), ref_std.repeat_interleave(size)
    return (kept - ref) / ref_std


def _restore(t: Tensor, gain: Tensor | None, deviation: Tensor, bound: float | None) -> Tensor:
    """Add ``gain`` (C,) times the bounded ``deviation``, (N, G) or (N, C), to ``t`` (N, C)."""
    assert gain is not None
    if bound is not None:
        deviation = bound * torch.tanh(deviation / bound)
    groups = deviation.shape[1]
    gain = gain.to(t.dtype).view(groups, -1)
    return torch.addcmul(t.unflatten(1, (groups, -1)), gain, deviation.unsqueeze(2)).flatten(1)
