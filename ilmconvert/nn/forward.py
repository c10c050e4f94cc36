"""The forward pass of ILM Norm in eager mode, in as few operations as there can be.

On small maps the fifty operations on (N, C) tensors of :mod:`ilmconvert.nn.composed` cost more than the passes over
``x``. Names follow the formula of :func:`ilmconvert.nn.ilm_norm`; views by group have the shape (N, groups, channels
of a group).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors, restoring_constants
from ilmconvert.nn.kernels import dispatch
from ilmconvert.nn.kernels.formulas import merge_moments


class Statistics(NamedTuple):
    """mu and sigma (N, G), m and v (N, K), and the hidden codes (2N, R) for v and m."""

    mu: Tensor
    sigma: Tensor
    m: Tensor
    v: Tensor
    codes: Tensor


def eager_forward(
    x: Tensor, t: Tensors, s: Settings, *, keep: bool = False
) -> tuple[Tensor, Tensor | None, Statistics]:
    """The output and, with ``keep``, what the gradient needs."""
    samples, channels = x.shape[:2]
    mean, var = dispatch.moments(x, s.finest)
    t = t.to(mean.dtype)
    mu, var_g = merge_moments(mean, var, s.num_groups)
    m, v = merge_moments(mean, var, s.num_key_groups)
    if s.correction:
        var_g, v = var_g * unbiased_factor(x, s.num_groups, s), v * unbiased_factor(x, s.num_key_groups, s)
    sigma = (var_g + s.eps).sqrt_()
    codes, gate, offset = _meta_network(m, v, t)
    by_group = (samples, s.num_groups, channels // s.num_groups)
    if t.restore_weight is None or s.restore_bound is not None:
        omega = _on_channels(t.weight, gate, channels, 1.0).view(by_group)
        shift = _on_channels(t.bias, offset, channels, 0.0).view(by_group)
        if t.restore_weight is not None:
            z_sigma, z_mu = deviations(mu, sigma, t, s)
            omega.addcmul_(grouped(t.restore_weight, sigma), z_sigma.unsqueeze(2))
            shift.addcmul_(grouped(t.restore_bias, sigma), z_mu.unsqueeze(2))
        scale = omega.div_(sigma.unsqueeze(2))
        shift.addcmul_(scale, mu.unsqueeze(2), value=-1)
    else:
        path = restoring_constants(t, s)
        omega = _on_channels(path.base_weight, gate, channels, 0.0).view(by_group)
        scale = omega.div_(sigma.unsqueeze(2)).add_(path.gain)
        shift = _on_channels(path.base_bias, offset, channels, 0.0).view(by_group)
        shift.addcmul_(path.bias_gain - scale, mu.unsqueeze(2))
    scale = scale.view(samples, channels)
    y = dispatch.scale_shift(x, scale, shift.view(samples, channels))
    return y, scale if keep else None, Statistics(mu, sigma, m, v, codes)


def _meta_network(m: Tensor, v: Tensor, t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden codes (2N, R), sigmoid - 1/2 and tanh (N, K); without a meta-network no codes and zeros."""
    if t.encoder is None or t.weight_decoder is None or t.bias_decoder is None:
        return m.new_zeros(0), torch.zeros_like(m), torch.zeros_like(m)
    codes = F.linear(torch.cat((v, m)), t.encoder).relu_()
    code_v, code_m = halves(codes)
    return codes, F.linear(code_v, t.weight_decoder).sigmoid_().sub_(0.5), F.linear(code_m, t.bias_decoder).tanh_()


def group_size(x: Tensor, num_groups: int) -> int:
    """Elements of a group of one sample."""
    return prod(x.shape[1:]) // num_groups


def unbiased_factor(x: Tensor, num_groups: int, s: Settings) -> float:
    """The factor from the biased variance to the one asked for."""
    count = group_size(x, num_groups)
    return count / (count - s.correction) if count > s.correction else 1.0


def deviations(mu: Tensor, sigma: Tensor, t: Tensors, s: Settings) -> tuple[Tensor, Tensor]:
    assert t.ref_mean is not None
    assert t.ref_std is not None
    z_sigma, z_mu = (sigma - t.ref_std).div_(t.ref_std), (mu - t.ref_mean).div_(t.ref_std)
    if s.restore_bound is not None:
        z_sigma, z_mu = (z.div_(s.restore_bound).tanh_().mul_(s.restore_bound) for z in (z_sigma, z_mu))
    return z_sigma, z_mu


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to v and what to m, of (2N, *)."""
    first, second = t.view(2, len(t) // 2, t.shape[1])
    return first, second


def _on_channels(base: Tensor | None, values: Tensor, channels: int, default: float) -> Tensor:
    """(C,) or a constant, plus each key group's value (N, K): (N, K, C / K), a new tensor."""
    groups = values.shape[1]
    if base is None:
        return (values + default).unsqueeze(2).repeat(1, 1, channels // groups)
    return base.view(groups, -1) + values.unsqueeze(2)


def grouped(gain: Tensor | None, like: Tensor) -> Tensor:
    assert gain is not None
    return gain.view(like.shape[1], -1)
