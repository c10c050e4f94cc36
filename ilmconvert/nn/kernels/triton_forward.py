"""The three Triton kernels of the forward pass: moments of the channels, everything on (N, C), scale and shift."""

from __future__ import annotations

import triton
import triton.language as tl

from ilmconvert.nn.kernels.triton_common import activate, channel_coefficients, tanh, tile


@triton.jit
def moments_kernel(x, means, squares, C, P, sc, sp, chunk, S, BC: tl.constexpr, BP: tl.constexpr):
    """Mean and sum of squared deviations of each channel's S parts, (N, C, S): two passes in registers, then merged."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    part = tl.program_id(1)
    first = part * chunk
    end = tl.minimum(first + chunk, P)
    mean = tl.zeros([BC], tl.float32)
    square = tl.zeros([BC], tl.float32)
    count = 0.0
    for p0 in range(first, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = there[:, None] & (p < end)[None, :]
        v = tl.load(x + start + c[:, None] * sc + p[None, :] * sp, mask=mask, other=0.0).to(tl.float32)
        k = tl.minimum(end - p0, BP).to(tl.float32)
        centre = tl.sum(v, 1) / k
        d = tl.where(mask, v - centre[:, None], 0.0)
        left = tl.sum(d, 1) / k  # what rounding left of the mean
        total = count + k
        delta = centre + left - mean
        square += tl.sum(d * d, 1) - k * left * left + delta * delta * (count * k / total)
        mean += delta * (k / total)
        count = total
    at = (n * C + c) * S + part
    tl.store(means + at, mean, mask=there)
    tl.store(squares + at, square, mask=there)


@triton.jit
def merged(means, squares, n, g, E, C, P, chunk, S, NUM, BE: tl.constexpr):
    """Mean and biased variance of groups g of NUM, of whose channels' parts there are E."""
    e = tl.arange(0, BE)
    mask = (g < NUM)[:, None] & (e < E)[None, :]
    at = n * C * S + g[:, None] * E + e[None, :]
    mean = tl.load(means + at, mask=mask, other=0.0)
    square = tl.load(squares + at, mask=mask, other=0.0)
    weight = tl.where((e % S)[None, :] == S - 1, P - (S - 1) * chunk, chunk).to(tl.float32)
    total = (E // S).to(tl.float32) * P
    centre = tl.sum(tl.where(mask, mean * weight, 0.0), 1) / total
    centre += tl.sum(tl.where(mask, (mean - centre[:, None]) * weight, 0.0), 1) / total
    d = tl.where(mask, mean - centre[:, None], 0.0)
    return centre, tl.sum(square + d * d * weight, 1) / total


@triton.jit
def statistics_kernel(
    means, squares, encoder, weight_decoder, bias_decoder, mu, sigma, m, v, codes, gate, offset,
    C, P, chunk, S, G, K, R, N, eps, unbiased, key_unbiased,
    META: tl.constexpr, BG: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """All that is asked of a sample: mu, sigma (N, G), m, v (N, K), codes (2, N, R), gate and offset (N, K)."""
    n = tl.program_id(0).to(tl.int64)
    for g0 in range(0, G, BG):
        g = g0 + tl.arange(0, BG)
        mean, var = merged(means, squares, n, g, (C // G) * S, C, P, chunk, S, G, BE)
        tl.store(mu + n * G + g, mean, mask=g < G)
        tl.store(sigma + n * G + g, tl.sqrt_rn(var * unbiased + eps), mask=g < G)
    if META:
        r = tl.arange(0, BR)
        code_v = tl.zeros([BR], tl.float32)
        code_m = tl.zeros([BR], tl.float32)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mean, var = merged(means, squares, n, k, (C // K) * S, C, P, chunk, S, K, BF)
            var = var * key_unbiased
            tl.store(m + n * K + k, mean, mask=k < K)
            tl.store(v + n * K + k, var, mask=k < K)
            mask = (r < R)[:, None] & (k < K)[None, :]
            rows = tl.load(encoder + r[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
            code_v += tl.sum(tl.where(mask, rows * var[None, :], 0.0), 1)
            code_m += tl.sum(tl.where(mask, rows * mean[None, :], 0.0), 1)
        # Not max: NaN stays NaN.
        code_v = tl.where(code_v < 0.0, 0.0, code_v)
        code_m = tl.where(code_m < 0.0, 0.0, code_m)
        tl.store(codes + n * R + r, code_v, mask=r < R)
        tl.store(codes + (N + n) * R + r, code_m, mask=r < R)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mask = (k < K)[:, None] & (r < R)[None, :]
            at = k[:, None] * R + r[None, :]
            rows = tl.load(weight_decoder + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(gate + n * K + k, tl.sigmoid(tl.sum(rows * code_v[None, :], 1)) - 0.5, mask=k < K)
            rows = tl.load(bias_decoder + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(offset + n * K + k, tanh(tl.sum(rows * code_m[None, :], 1)), mask=k < K)


@triton.jit
def apply_kernel(
    x, y, t, stats, C, P, sc, sp, G, K, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """``x * scale + shift`` and the activation behind it."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    scale, shift, _, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, C, G, K, FLAGS)
    mask = there[:, None] & (p < P)[None, :]
    at = start + c[:, None] * sc + p[None, :] * sp
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale[:, None] + shift[:, None]
    tl.store(y + at, activate(value, ACT), mask=mask)
