"""ILM Norm composed of differentiable operations: what compilers, exporters and ``torch.func`` see."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors, restoring_constants
from ilmconvert.nn.kernels import autograd
from ilmconvert.nn.kernels.formulas import merge_moments
from ilmconvert.nn.restore_range import image_into_range


def composed(x: Tensor, t: Tensors, s: Settings) -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` for checked arguments."""
    # an image's range is about its channels
    finest = s.finest if s.restore_range is None else x.shape[1]
    mean, var = autograd.moments(x, finest)
    t = t.to(mean.dtype)
    count = prod(x.shape[2:]) * (x.shape[1] // finest)
    mu, var_g = _corrected(mean, var, s.num_groups, count, s.correction)
    sigma = (var_g + s.eps).sqrt()
    if t.encoder is None:
        gate = offset = mu.new_zeros(1, 1)
    else:
        gate, offset = _meta_network(*_corrected(mean, var, s.num_key_groups, count, s.correction), t)
    factor: Tensor | float = 1.0
    moved: Tensor | None = None
    if t.restore_weight is not None and s.restore_range is not None:
        assert t.ref_mean is not None
        assert t.ref_std is not None
        moved, factor = image_into_range(mean, var, mu, t.ref_mean, t.ref_std, s.eps, s.restore_range)
        moved = moved.unflatten(1, (s.num_groups, -1))
    coefficients = _bounded if t.restore_weight is None or s.restore_bound is not None else _unbounded
    scale, shift = coefficients(mu.unsqueeze(2), sigma.unsqueeze(2), gate, offset, factor, moved, t, s, x.shape[1])
    return autograd.scale_shift(x, scale.flatten(1), shift.flatten(1))


def _unbounded(
    mu: Tensor,
    sigma: Tensor,
    gate: Tensor,
    offset: Tensor,
    factor: Tensor | float,
    moved: Tensor | None,
    t: Tensors,
    s: Settings,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """Scale and shift (N, G, C / G) by :class:`ilmconvert.nn.arguments.RestoringConstants`."""
    path = restoring_constants(t, s)
    base = _add_groups(path.base_weight, gate, channels, 0.0).unflatten(1, (s.num_groups, -1))
    gain = path.gain if moved is None else path.gain * _per_instance(factor)
    scale = gain + base / sigma
    shift = _add_groups(path.base_bias, offset, channels, 0.0).unflatten(1, (s.num_groups, -1))
    if moved is not None:
        shift = shift + path.bias_gain * moved
    return scale, torch.addcmul(shift, path.bias_gain - scale, mu)


def _bounded(
    mu: Tensor,
    sigma: Tensor,
    gate: Tensor,
    offset: Tensor,
    factor: Tensor | float,
    moved: Tensor | None,
    t: Tensors,
    s: Settings,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """The same of a path with a bound, or of none."""
    by_group = (s.num_groups, -1)
    omega = _add_groups(t.weight, gate, channels, 1.0).unflatten(1, by_group)
    beta = _add_groups(t.bias, offset, channels, 0.0).unflatten(1, by_group)
    if t.restore_weight is not None and t.restore_bias is not None:
        assert t.ref_mean is not None
        assert t.ref_std is not None
        ref_mean, ref_std = t.ref_mean.unsqueeze(1), t.ref_std.unsqueeze(1)
        kept_sigma = sigma if moved is None else sigma * _per_instance(factor)
        kept_mu = mu if moved is None else mu + moved
        omega = omega + t.restore_weight.view(by_group) * _bound((kept_sigma - ref_std) / ref_std, s.restore_bound)
        beta = beta + t.restore_bias.view(by_group) * _bound((kept_mu - ref_mean) / ref_std, s.restore_bound)
    scale = omega / sigma
    return scale, torch.addcmul(beta, scale, mu, value=-1)


def _per_instance(factor: Tensor | float) -> Tensor | float:
    return factor.unsqueeze(2) if isinstance(factor, Tensor) else factor


def _bound(deviation: Tensor, bound: float | None) -> Tensor:
    return deviation if bound is None else bound * torch.tanh(deviation / bound)


def _corrected(mean: Tensor, var: Tensor, num_groups: int, count: int, correction: int) -> tuple[Tensor, Tensor]:
    """Moments of ``num_groups`` groups from the finest ones, which hold ``count`` elements each."""
    total = count * (mean.shape[1] // num_groups)
    mean, var = merge_moments(mean, var, num_groups)
    if correction and total > correction:
        var = var * (total / (total - correction))
    return mean, var


def _meta_network(key_mean: Tensor, key_var: Tensor, t: Tensors) -> tuple[Tensor, Tensor]:
    """What it adds to weight and bias, (N, K), from the key features (N, K)."""
    assert t.encoder is not None
    assert t.weight_decoder is not None
    assert t.bias_decoder is not None
    code_var, code_mean = F.linear(torch.stack((key_var, key_mean)), t.encoder).relu()
    return F.linear(code_var, t.weight_decoder).sigmoid() - 0.5, F.linear(code_mean, t.bias_decoder).tanh()


def _add_groups(base: Tensor | None, values: Tensor, num_channels: int, default: float) -> Tensor:
    """(C,) plus (N, K), each key group's value repeated over its channels: (N, C)."""
    groups = values.shape[1]
    if base is None:
        base = values.new_full((num_channels,), default)
    return (base.view(groups, -1) + values.unsqueeze(2)).flatten(1)
