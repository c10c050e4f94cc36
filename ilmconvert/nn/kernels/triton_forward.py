"""The three Triton kernels of the forward pass: moments of the channels, everything on (N, C), scale and shift."""

from __future__ import annotations

import triton
import triton.language as tl

from ilmconvert.nn.kernels.triton_common import activate, channel_coefficients, of_keys, tanh, tile


@triton.jit
def moments_kernel(x, moments, C, P, sc, sp, chunk, S, N, BC: tl.constexpr, BP: tl.constexpr):
    """Mean and sum of squared deviations of each channel's S parts, (2, N, C, S).

    Each lane keeps those of its own positions (Welford's algorithm); the lanes are merged once, at the end.
    """
    n, c, there, start = tile(C, P, sc, sp, BC)
    part = tl.program_id(1)
    first = part * chunk
    end = tl.minimum(first + chunk, P)
    lane = tl.arange(0, BP)
    mean = tl.zeros([BC, BP], tl.float32)
    square = tl.zeros([BC, BP], tl.float32)
    steps = 0.0
    for p0 in range(first, end, BP):
        p = p0 + lane
        mask = there[:, None] & (p < end)[None, :]
        v = tl.load(x + start + c[:, None] * sc + p[None, :] * sp, mask=mask, other=0.0).to(tl.float32)
        steps += 1.0
        d = tl.where(mask, v - mean, 0.0)
        mean += d * (1.0 / steps)
        square += tl.where(mask, d * (v - mean), 0.0)
    count = tl.maximum((end - first - lane + BP - 1) // BP, 0).to(tl.float32)[None, :]
    total = (end - first).to(tl.float32)
    centre = tl.sum(mean * count, 1) / total
    centre += tl.sum((mean - centre[:, None]) * count, 1) / total
    d = mean - centre[:, None]
    at = (n * C + c) * S + part
    tl.store(moments + at, centre, mask=there)
    tl.store(moments + N * C * S + at, tl.sum(square + d * d * count, 1), mask=there)


@triton.jit
def merged(moments, n, g, E, N, C, P, chunk, S, NUM, BE: tl.constexpr):
    """Mean and biased variance of groups g of NUM, of whose channels' parts there are E."""
    e = tl.arange(0, BE)
    mask = (g < NUM)[:, None] & (e < E)[None, :]
    at = n * C * S + g[:, None] * E + e[None, :]
    mean = tl.load(moments + at, mask=mask, other=0.0)
    square = tl.load(moments + N * C * S + at, mask=mask, other=0.0)
    weight = tl.where((e % S)[None, :] == S - 1, P - (S - 1) * chunk, chunk).to(tl.float32)
    total = (E // S) * P * 1.0
    centre = tl.sum(tl.where(mask, mean * weight, 0.0), 1) / total
    centre += tl.sum(tl.where(mask, (mean - centre[:, None]) * weight, 0.0), 1) / total
    d = tl.where(mask, mean - centre[:, None], 0.0)
    return centre, tl.sum(square + d * d * weight, 1) / total


@triton.jit
def statistics_kernel(
    moments, encoder, weight_decoder, bias_decoder, stats,
    C, P, chunk, S, G, K, R, N, eps, unbiased, key_unbiased,
    META: tl.constexpr, BG: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """All that belongs to a sample, into ``stats``."""
    n = tl.program_id(0).to(tl.int64)
    for g0 in range(0, G, BG):
        g = g0 + tl.arange(0, BG)
        mean, var = merged(moments, n, g, (C // G) * S, N, C, P, chunk, S, G, BE)
        tl.store(stats + n * G + g, mean, mask=g < G)
        tl.store(stats + (N + n) * G + g, tl.sqrt_rn(var * unbiased + eps), mask=g < G)
    if META:
        r = tl.arange(0, BR)
        code_v = tl.zeros([BR], tl.float32)
        code_m = tl.zeros([BR], tl.float32)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mean, var = merged(moments, n, k, (C // K) * S, N, C, P, chunk, S, K, BF)
            var = var * key_unbiased
            tl.store(of_keys(stats, N, G, K, 0) + n * K + k, mean, mask=k < K)
            tl.store(of_keys(stats, N, G, K, 1) + n * K + k, var, mask=k < K)
            mask = (r < R)[:, None] & (k < K)[None, :]
            rows = tl.load(encoder + r[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
            code_v += tl.sum(tl.where(mask, rows * var[None, :], 0.0), 1)
            code_m += tl.sum(tl.where(mask, rows * mean[None, :], 0.0), 1)
        # Not max: NaN stays NaN.
        code_v = tl.where(code_v < 0.0, 0.0, code_v)
        code_m = tl.where(code_m < 0.0, 0.0, code_m)
        codes = of_keys(stats, N, G, K, 4)
        tl.store(codes + n * R + r, code_v, mask=r < R)
        tl.store(codes + (N + n) * R + r, code_m, mask=r < R)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mask = (k < K)[:, None] & (r < R)[None, :]
            at = k[:, None] * R + r[None, :]
            rows = tl.load(weight_decoder + at, mask=mask, other=0.0).to(tl.float32)
            gate = tl.sigmoid(tl.sum(rows * code_v[None, :], 1)) - 0.5
            tl.store(of_keys(stats, N, G, K, 2) + n * K + k, gate, mask=k < K)
            rows = tl.load(bias_decoder + at, mask=mask, other=0.0).to(tl.float32)
            offset = tanh(tl.sum(rows * code_m[None, :], 1))
            tl.store(of_keys(stats, N, G, K, 3) + n * K + k, offset, mask=k < K)


@triton.jit
def apply_kernel(
    x, y, t, stats, C, P, sc, sp, chunk, N, G, K, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """``x * scale + shift`` and the activation behind it."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    first = tl.program_id(1) * chunk
    end = tl.minimum(first + chunk, P)
    scale, shift, _, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, N, C, G, K, FLAGS)
    for p0 in range(first, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = there[:, None] & (p < end)[None, :]
        at = start + c[:, None] * sc + p[None, :] * sp
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale[:, None] + shift[:, None]
        tl.store(y + at, activate(value, ACT), mask=mask)
