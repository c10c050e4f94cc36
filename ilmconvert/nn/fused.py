"""ILM Norm as one autograd node with its gradient by hand: eager mode, where every small operation counts.

On small maps the fifty operations on (N, C) tensors of :mod:`ilmconvert.nn.composed`, and their derivatives, cost
more than the passes over ``x``. Names follow the formula of :func:`ilmconvert.nn.ilm_norm`; ``d_t`` is the
derivative of the loss by ``t``. ``by_group`` and ``by_key`` views have the shape (N, groups, channels of a group).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ilmconvert.nn import kernels
from ilmconvert.nn.composed import Settings, Tensors, composed
from ilmconvert.nn.formulas import merge_moments

_aten = torch.ops.aten


def can_fuse(x: Tensor, t: Tensors) -> bool:
    """Whether nothing but plain autograd looks at the operations: no compiler, transform, mode or subclass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or type(x) not in (Tensor, torch.nn.Parameter)
        # The gradient by hand leaves out the reference values, which are frozen unless somebody thaws them.
        or (t.ref_mean is not None and t.ref_mean.requires_grad)
        or (t.ref_std is not None and t.ref_std.requires_grad)
    )


def fused(x: Tensor, t: Tensors, s: Settings) -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` for checked arguments that :func:`can_fuse`."""
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, *t)):
        result: Tensor = _Fused.apply(s, x, *t)
        return result
    return _forward(x, t, s)[0]


class _Statistics(NamedTuple):
    """mu and sigma (N, G), m and v (N, K), and the hidden codes (2N, R) for v and m."""

    mu: Tensor
    sigma: Tensor
    m: Tensor
    v: Tensor
    codes: Tensor


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Settings, x: Tensor, *tensors: Tensor | None) -> Tensor:
        y, scale, stats = _forward(x, Tensors(*tensors), s, keep=True)
        ctx.settings = s
        ctx.save_for_backward(x, *tensors, scale, *stats)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Unpacked once: activation checkpointing computes a saved tensor again each time it is asked for.
        x, *saved = ctx.saved_tensors
        count = len(Tensors._fields)
        t, scale, stats = Tensors(*saved[:count]), saved[count], _Statistics(*saved[count + 1 :])
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_differentiable_backward(grad, x, t, ctx.settings, needs)
        return None, *_backward(grad, x, t, ctx.settings, scale, stats, needs)


def _forward(x: Tensor, t: Tensors, s: Settings, *, keep: bool = False) -> tuple[Tensor, Tensor | None, _Statistics]:
    """The output and, with ``keep``, what the gradient needs."""
    samples, channels = x.shape[:2]
    mean, var = kernels.moments(x, s.finest)
    t = t.to(mean.dtype)
    mu, var_g = merge_moments(mean, var, s.num_groups)
    m, v = merge_moments(mean, var, s.num_key_groups)
    if s.correction:
        var_g, v = var_g * _gain(x, s.num_groups, s), v * _gain(x, s.num_key_groups, s)
    sigma = (var_g + s.eps).sqrt_()
    codes, gate, offset = _meta_network(m, v, t)
    by_group = (samples, s.num_groups, channels // s.num_groups)
    omega = _on_channels(t.weight, gate.sub_(0.5), channels, 1.0).view(by_group)
    beta = _on_channels(t.bias, offset, channels, 0.0).view(by_group)
    if t.restore_weight is not None:
        z_sigma, z_mu = _deviations(mu, sigma, t, s)
        omega.addcmul_(_by_group(t.restore_weight, sigma), z_sigma.unsqueeze(2))
        beta.addcmul_(_by_group(t.restore_bias, sigma), z_mu.unsqueeze(2))
    stats = _Statistics(mu, sigma, m, v, codes)
    if not s.correction and kernels.prefers_group_norm(x):
        y = kernels.group_norm(x, omega, beta, s.num_groups, s.eps)
        return y, omega.div_(sigma.unsqueeze(2)).view(samples, channels) if keep else None, stats
    scale = omega.div_(sigma.unsqueeze(2))
    shift = beta.addcmul_(scale, mu.unsqueeze(2), value=-1)
    scale = scale.view(samples, channels)
    return kernels.scale_shift(x, scale, shift.view(samples, channels)), scale, stats


def _meta_network(m: Tensor, v: Tensor, t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden codes (2N, R), sigmoid and tanh (N, K); without a meta-network no codes, 1/2 and 0."""
    if t.encoder is None or t.weight_decoder is None or t.bias_decoder is None:
        return m.new_zeros(0), torch.full_like(m, 0.5), torch.zeros_like(m)
    codes = F.linear(torch.cat((v, m)), t.encoder).relu_()
    code_v, code_m = _halves(codes)
    return codes, F.linear(code_v, t.weight_decoder).sigmoid_(), F.linear(code_m, t.bias_decoder).tanh_()


def _backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, scale: Tensor, stats: _Statistics, needs: Sequence[bool]
) -> list[Tensor | None]:
    original, t = t, t.to(scale.dtype)
    samples, channels = x.shape[:2]
    by_group = (samples, s.num_groups, channels // s.num_groups)
    by_key = (samples, s.num_key_groups, channels // s.num_key_groups)
    d_scale, d_beta = kernels.channel_sums(grad, x, scale.dtype)
    g_beta, g_scale = d_beta.view(by_group), scale.view(by_group)
    # scale = omega / sigma and shift = beta - scale * mu
    g_omega = torch.addcmul(d_scale.view(by_group), g_beta, stats.mu.unsqueeze(2), value=-1)
    g_omega = g_omega.div_(stats.sigma.unsqueeze(2))
    d_sigma = torch.linalg.vecdot(g_omega, g_scale).neg_()
    d_mu = torch.linalg.vecdot(g_beta, g_scale).neg_()
    grads: dict[str, Tensor | None] = {}
    if t.restore_weight is not None:
        grads |= _backward_restoring(g_omega, g_beta, d_sigma, d_mu, t, s, stats)
    d_omega = g_omega.view(samples, channels)
    grads |= {"weight": d_omega.sum(0), "bias": d_beta.sum(0)}
    d_v = d_m = None
    if t.encoder is not None:
        d_gate, d_offset = d_omega.view(by_key).sum(2), d_beta.view(by_key).sum(2)
        meta, d_v, d_m = _backward_meta_network(d_gate, d_offset, t, stats)
        grads |= meta
    if needs[0]:
        p, q = _moment_coefficients(d_sigma / (2 * stats.sigma), d_mu, stats.mu, s.num_groups, x, s)
        if d_v is not None and d_m is not None:
            p_key, q_key = _moment_coefficients(d_v, d_m, stats.m, s.num_key_groups, x, s)
            p, q = (_add_partitions(a, b, channels) for a, b in ((p, p_key), (q, q_key)))
        p, q = (_repeat(a, channels) for a in (p, q))
        grads["x"] = kernels.combine(grad, scale, x, p, q)
    names = ("x", *Tensors._fields)
    values = zip(names, (x, *original), needs, strict=True)
    return [_like(grads.get(name), tensor) if need else None for name, tensor, need in values]


def _backward_restoring(
    g_omega: Tensor, g_beta: Tensor, d_sigma: Tensor, d_mu: Tensor, t: Tensors, s: Settings, stats: _Statistics
) -> dict[str, Tensor | None]:
    """Gradients of the restoring parameters; adds its share to ``d_sigma`` and ``d_mu``."""
    assert t.ref_std is not None
    z_sigma, z_mu = _deviations(stats.mu, stats.sigma, t, s)
    gains = _by_group(t.restore_weight, z_mu), _by_group(t.restore_bias, z_mu)
    for total, g, z, gain in ((d_sigma, g_omega, z_sigma, gains[0]), (d_mu, g_beta, z_mu, gains[1])):
        d_z = torch.linalg.vecdot(g, gain).div_(t.ref_std)
        if s.restore_bound is not None:
            d_z.mul_(1 - (z / s.restore_bound).square_())
        total.add_(d_z)
    return {
        "restore_weight": (g_omega * z_sigma.unsqueeze(2)).sum(0).reshape(-1),
        "restore_bias": (g_beta * z_mu.unsqueeze(2)).sum(0).reshape(-1),
    }


def _backward_meta_network(
    d_gate: Tensor, d_offset: Tensor, t: Tensors, stats: _Statistics
) -> tuple[dict[str, Tensor | None], Tensor, Tensor]:
    """Gradients of the auto-encoder and of v and m; its outputs are cheaper to compute again than to keep."""
    assert t.encoder is not None
    assert t.weight_decoder is not None
    assert t.bias_decoder is not None
    code_v, code_m = _halves(stats.codes)
    d_gate = _aten.sigmoid_backward(d_gate, F.linear(code_v, t.weight_decoder).sigmoid_())
    d_offset = _aten.tanh_backward(d_offset, F.linear(code_m, t.bias_decoder).tanh_())
    d_codes = torch.cat((torch.mm(d_gate, t.weight_decoder), torch.mm(d_offset, t.bias_decoder)))
    d_codes = _aten.threshold_backward(d_codes, stats.codes, 0)
    d_features = torch.mm(d_codes, t.encoder)
    grads: dict[str, Tensor | None] = {
        "encoder": torch.mm(d_codes.t(), torch.cat((stats.v, stats.m))),
        "weight_decoder": torch.mm(d_gate.t(), code_v),
        "bias_decoder": torch.mm(d_offset.t(), code_m),
    }
    return grads, *_halves(d_features)


def _differentiable_backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient as a function that can be differentiated again."""
    wanted = [p for p, need in zip((x, *t), needs, strict=True) if need and p is not None]
    grads = iter(torch.autograd.grad(composed(x, t, s), wanted, grad, create_graph=True, allow_unused=True))
    return [next(grads) if need else None for need in needs]


def _group_size(x: Tensor, num_groups: int) -> int:
    """Elements of a group of one sample."""
    return prod(x.shape[1:]) // num_groups


def _gain(x: Tensor, num_groups: int, s: Settings) -> float:
    """The factor from the biased variance to the one asked for."""
    count = _group_size(x, num_groups)
    return count / (count - s.correction) if count > s.correction else 1.0


def _moment_coefficients(
    d_var: Tensor, d_mean: Tensor, mean: Tensor, num_groups: int, x: Tensor, s: Settings
) -> tuple[Tensor, Tensor]:
    """p and q of the share p x + q that a partition's moments have in the gradient of ``x``."""
    count = float(max(_group_size(x, num_groups), 1))
    p = d_var * (2 * _gain(x, num_groups, s) / count)
    return p, torch.addcmul(d_mean / count, p, mean, value=-1)


def _deviations(mu: Tensor, sigma: Tensor, t: Tensors, s: Settings) -> tuple[Tensor, Tensor]:
    assert t.ref_mean is not None
    assert t.ref_std is not None
    z_sigma, z_mu = (sigma - t.ref_std).div_(t.ref_std), (mu - t.ref_mean).div_(t.ref_std)
    if s.restore_bound is not None:
        z_sigma, z_mu = (z.div_(s.restore_bound).tanh_().mul_(s.restore_bound) for z in (z_sigma, z_mu))
    return z_sigma, z_mu


def _halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to v and what to m, of (2N, *)."""
    first, second = t.view(2, len(t) // 2, t.shape[1])
    return first, second


def _on_channels(base: Tensor | None, values: Tensor, channels: int, default: float) -> Tensor:
    """(C,) or a constant, plus each key group's value (N, K): (N, K, C / K), a new tensor."""
    groups = values.shape[1]
    if base is None:
        return (values + default).unsqueeze(2).repeat(1, 1, channels // groups)
    return base.view(groups, -1) + values.unsqueeze(2)


def _by_group(gain: Tensor | None, like: Tensor) -> Tensor:
    assert gain is not None
    return gain.view(like.shape[1], -1)


def _add_partitions(a: Tensor, b: Tensor, channels: int) -> Tensor:
    """Values of two partitions, (N, G) and (N, K), added channel by channel: (N, C)."""
    total = b.unsqueeze(2).repeat(1, 1, channels // b.shape[1]).view(len(a), channels)
    total.view(len(a), a.shape[1], channels // a.shape[1]).add_(a.unsqueeze(2))
    return total


def _repeat(a: Tensor, channels: int) -> Tensor:
    return a if a.shape[1] == channels else a.unsqueeze(2).repeat(1, 1, channels // a.shape[1]).view(len(a), channels)


def _like(grad: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if grad is None or tensor is None else grad.to(tensor.dtype)
