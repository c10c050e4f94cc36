"""The gradient of ILM Norm by hand.

``d_t`` is the derivative of the loss by ``t``; other names are those of :mod:`ilmconvert.nn.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors, restoring_constants
from ilmconvert.nn.forward import Statistics, deviations, group_size, grouped, halves, unbiased_factor
from ilmconvert.nn.kernels import dispatch

_aten = torch.ops.aten


def eager_backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, scale: Tensor, stats: Statistics, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of ``x`` and of ``t``'s tensors, None where ``needs`` doesn't ask for one.

    Args:
        grad: of the output, (N, C, *).
        scale: of the forward pass, (N, C), and its ``stats``.
    """
    original, t = t, t.to(scale.dtype)
    samples, channels = x.shape[:2]
    by_group = (samples, s.num_groups, channels // s.num_groups)
    by_key = (samples, s.num_key_groups, channels // s.num_key_groups)
    d_scale, d_beta = dispatch.channel_sums(grad, x, scale.dtype)
    g_beta, g_scale = d_beta.view(by_group), scale.view(by_group)
    # scale = omega / sigma and shift = beta - scale * mu
    g_omega = torch.addcmul(d_scale.view(by_group), g_beta, stats.mu.unsqueeze(2), value=-1)
    g_omega = g_omega.div_(stats.sigma.unsqueeze(2))
    grads: dict[str, Tensor | None] = {}
    if t.restore_weight is None or s.restore_bound is not None:
        d_sigma = torch.linalg.vecdot(g_omega, g_scale).neg_()
        d_mu = torch.linalg.vecdot(g_beta, g_scale).neg_()
    else:
        # Zeros right after a conversion, where the output doesn't depend on the statistics.
        path = restoring_constants(t, s)
        d_sigma = torch.linalg.vecdot(g_omega, path.gain - g_scale)
        d_mu = torch.linalg.vecdot(g_beta, path.bias_gain - g_scale)
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
        grads["x"] = dispatch.combine(grad, scale, x, p, q)
    names = ("x", *Tensors._fields)
    values = zip(names, (x, *original), needs, strict=True)
    return [_like(grads.get(name), tensor) if need else None for name, tensor, need in values]


def _backward_restoring(
    g_omega: Tensor, g_beta: Tensor, d_sigma: Tensor, d_mu: Tensor, t: Tensors, s: Settings, stats: Statistics
) -> dict[str, Tensor | None]:
    """Gradients of the restoring parameters; a bounded path adds its share to ``d_sigma`` and ``d_mu``."""
    assert t.ref_std is not None
    z_sigma, z_mu = deviations(stats.mu, stats.sigma, t, s)
    if s.restore_bound is not None:
        gains = grouped(t.restore_weight, z_mu), grouped(t.restore_bias, z_mu)
        for total, g, z, gain in ((d_sigma, g_omega, z_sigma, gains[0]), (d_mu, g_beta, z_mu, gains[1])):
            d_z = torch.linalg.vecdot(g, gain).div_(t.ref_std)
            total.add_(d_z.mul_(1 - (z / s.restore_bound).square_()))
    return {
        "restore_weight": (g_omega * z_sigma.unsqueeze(2)).sum(0).reshape(-1),
        "restore_bias": (g_beta * z_mu.unsqueeze(2)).sum(0).reshape(-1),
    }


def _backward_meta_network(
    d_gate: Tensor, d_offset: Tensor, t: Tensors, stats: Statistics
) -> tuple[dict[str, Tensor | None], Tensor, Tensor]:
    """Gradients of the auto-encoder and of v and m; its outputs are cheaper to compute again than to keep."""
    assert t.encoder is not None
    assert t.weight_decoder is not None
    assert t.bias_decoder is not None
    code_v, code_m = halves(stats.codes)
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
    return grads, *halves(d_features)


def _moment_coefficients(
    d_var: Tensor, d_mean: Tensor, mean: Tensor, num_groups: int, x: Tensor, s: Settings
) -> tuple[Tensor, Tensor]:
    """p and q of the share p x + q that a partition's moments have in the gradient of ``x``."""
    count = float(max(group_size(x, num_groups), 1))
    p = d_var * (2 * unbiased_factor(x, num_groups, s) / count)
    return p, torch.addcmul(d_mean / count, p, mean, value=-1)


def _add_partitions(a: Tensor, b: Tensor, channels: int) -> Tensor:
    """Values of two partitions, (N, G) and (N, K), added channel by channel: (N, C)."""
    total = b.unsqueeze(2).repeat(1, 1, channels // b.shape[1]).view(len(a), channels)
    total.view(len(a), a.shape[1], channels // a.shape[1]).add_(a.unsqueeze(2))
    return total


def _repeat(a: Tensor, channels: int) -> Tensor:
    return a if a.shape[1] == channels else a.unsqueeze(2).repeat(1, 1, channels // a.shape[1]).view(len(a), channels)


def _like(grad: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if grad is None or tensor is None else grad.to(tensor.dtype)
