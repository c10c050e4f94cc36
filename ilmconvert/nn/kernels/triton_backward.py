"""The five Triton kernels of the backward pass. ``d_t`` is the derivative of the loss by ``t``."""

from __future__ import annotations

import triton
import triton.language as tl

from ilmconvert.nn.kernels.triton_common import activation_slope, channel_coefficients, deviation, tile


@triton.jit
def sums_kernel(
    x, grad, products, sums, t, stats, C, P, sc, sp, chunk, S, G, K, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Over the positions of each of a channel's S parts, the sums of grad (x - mu) and of grad: (N, C, S)."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    part = tl.program_id(1)
    end = tl.minimum((part + 1) * chunk, P)
    scale, shift, mu, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, C, G, K, FLAGS)
    product = tl.zeros([BC], tl.float32)
    total = tl.zeros([BC], tl.float32)
    for p0 in range(part * chunk, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = there[:, None] & (p < end)[None, :]
        at = start + c[:, None] * sc + p[None, :] * sp
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if ACT != "none":
            d *= activation_slope(value * scale[:, None] + shift[:, None], ACT)
        product += tl.sum(tl.where(mask, d * (value - mu[:, None]), 0.0), 1)
        total += tl.sum(d, 1)
    at = (n * C + c) * S + part
    tl.store(products + at, product, mask=there)
    tl.store(sums + at, total, mask=there)


@triton.jit
def small_kernel(
    products, sums, t, stats, encoder, weight_decoder, bias_decoder, codes, by_group, by_key, d_gates, d_codes,
    C, P, S, G, K, R, N, bound, unbiased, key_unbiased,
    FLAGS: tl.constexpr, BG: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """All that is asked of a sample.

    ``by_group`` (2, N, G) and ``by_key`` (2, N, K) get a and b of a (x - mean) + b, the share of each partition in the
    gradient of x; ``d_gates`` (2, N, K) and ``d_codes`` (2, N, R) the gradients before the nonlinearities of the
    decoders and of the encoder.
    """
    n = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BE)
    for g0 in range(0, G, BG):
        g = g0 + tl.arange(0, BG)
        size = C // G
        mask = (g < G)[:, None] & (e < size * S)[None, :]
        c = g[:, None] * size + e[None, :] // S
        scale, _, _, sigma, gain, bias_gain = channel_coefficients(n, c, mask, t, stats, bound, C, G, K, FLAGS)
        at = n * C * S + g[:, None] * size * S + e[None, :]
        product = tl.load(products + at, mask=mask, other=0.0)
        total = tl.load(sums + at, mask=mask, other=0.0)
        d_sigma = tl.sum(tl.where(mask, product / sigma * (gain - scale), 0.0), 1)
        d_mu = tl.sum(tl.where(mask, total * (bias_gain - scale), 0.0), 1)
        own = tl.load(stats[1] + n * G + g, mask=g < G, other=1.0)
        count = size.to(tl.float32) * P
        tl.store(by_group + n * G + g, d_sigma * unbiased / (own * count), mask=g < G)
        tl.store(by_group + (N + n) * G + g, d_mu / count, mask=g < G)
    META: tl.constexpr = FLAGS[1]
    if META:
        f = tl.arange(0, BF)
        r = tl.arange(0, BR)
        d_code_v = tl.zeros([BR], tl.float32)
        d_code_m = tl.zeros([BR], tl.float32)
        size = C // K
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mask = (k < K)[:, None] & (f < size * S)[None, :]
            c = k[:, None] * size + f[None, :] // S
            sigma = tl.load(stats[1] + n * G + c // (C // G), mask=mask, other=1.0)
            at = n * C * S + k[:, None] * size * S + f[None, :]
            d_gate = tl.sum(tl.load(products + at, mask=mask, other=0.0) / sigma, 1)
            d_offset = tl.sum(tl.load(sums + at, mask=mask, other=0.0), 1)
            gate = tl.load(stats[2] + n * K + k, mask=k < K, other=0.0)
            offset = tl.load(stats[3] + n * K + k, mask=k < K, other=0.0)
            d_gate *= 0.25 - gate * gate
            d_offset *= 1.0 - offset * offset
            tl.store(d_gates + n * K + k, d_gate, mask=k < K)
            tl.store(d_gates + (N + n) * K + k, d_offset, mask=k < K)
            both = (k < K)[:, None] & (r < R)[None, :]
            rows = k[:, None] * R + r[None, :]
            w = tl.load(weight_decoder + rows, mask=both, other=0.0).to(tl.float32)
            d_code_v += tl.sum(tl.where(both, w * d_gate[:, None], 0.0), 0)
            w = tl.load(bias_decoder + rows, mask=both, other=0.0).to(tl.float32)
            d_code_m += tl.sum(tl.where(both, w * d_offset[:, None], 0.0), 0)
        d_code_v = tl.where(tl.load(codes + n * R + r, mask=r < R, other=0.0) > 0.0, d_code_v, 0.0)
        d_code_m = tl.where(tl.load(codes + (N + n) * R + r, mask=r < R, other=0.0) > 0.0, d_code_m, 0.0)
        tl.store(d_codes + n * R + r, d_code_v, mask=r < R)
        tl.store(d_codes + (N + n) * R + r, d_code_m, mask=r < R)
        count = size.to(tl.float32) * P
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            both = (r < R)[:, None] & (k < K)[None, :]
            w = tl.load(encoder + r[:, None] * K + k[None, :], mask=both, other=0.0).to(tl.float32)
            tl.store(by_key + n * K + k, tl.sum(w * d_code_v[:, None], 0) * 2.0 * key_unbiased / count, mask=k < K)
            tl.store(by_key + (N + n) * K + k, tl.sum(w * d_code_m[:, None], 0) / count, mask=k < K)


@triton.jit
def channel_gradients_kernel(
    products, sums, t, stats, d_weight, d_bias, d_restore_weight, d_restore_bias, C, S, G, N, bound,
    FLAGS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradients of the parameters of each channel, summed over samples in their order."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    there = c < C
    g = c // (C // G)
    AFFINE: tl.constexpr = FLAGS[0]
    RESTORE: tl.constexpr = FLAGS[2]
    zeros = tl.zeros([BC], tl.float32)
    omega, beta, restored_omega, restored_beta = zeros, zeros, zeros, zeros
    for n in range(N):
        mu = tl.load(stats[0] + n * G + g, mask=there, other=0.0)
        sigma = tl.load(stats[1] + n * G + g, mask=there, other=1.0)
        product, total = zeros, zeros
        for part in range(S):
            at = (n * C + c).to(tl.int64) * S + part
            product += tl.load(products + at, mask=there, other=0.0)
            total += tl.load(sums + at, mask=there, other=0.0)
        product = product / sigma
        omega += product
        beta += total
        if RESTORE:
            mean = tl.load(t[4] + g, mask=there, other=0.0).to(tl.float32)
            std = tl.load(t[5] + g, mask=there, other=1.0).to(tl.float32)
            z, _ = deviation(sigma, std, std, bound, FLAGS[3])
            restored_omega += product * z
            z, _ = deviation(mu, mean, std, bound, FLAGS[3])
            restored_beta += total * z
    if AFFINE:
        tl.store(d_weight + c, omega, mask=there)
        tl.store(d_bias + c, beta, mask=there)
    if RESTORE:
        tl.store(d_restore_weight + c, restored_omega, mask=there)
        tl.store(d_restore_bias + c, restored_beta, mask=there)


@triton.jit
def meta_gradients_kernel(
    m, v, codes, d_gates, d_codes, d_encoder, d_weight_decoder, d_bias_decoder, K, R, N,
    BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The gradients of the meta-network, summed over samples in their order."""
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    r = tl.arange(0, BR)
    at = tl.zeros([BK, BR], tl.float32)
    encoder, weight_decoder, bias_decoder = at, at, at
    for n in range(N):
        d_v = tl.load(d_codes + n * R + r, mask=r < R, other=0.0)[None, :]
        d_m = tl.load(d_codes + (N + n) * R + r, mask=r < R, other=0.0)[None, :]
        code_v = tl.load(codes + n * R + r, mask=r < R, other=0.0)[None, :]
        code_m = tl.load(codes + (N + n) * R + r, mask=r < R, other=0.0)[None, :]
        encoder += d_v * tl.load(v + n * K + k, mask=k < K, other=0.0)[:, None]
        encoder += d_m * tl.load(m + n * K + k, mask=k < K, other=0.0)[:, None]
        weight_decoder += code_v * tl.load(d_gates + n * K + k, mask=k < K, other=0.0)[:, None]
        bias_decoder += code_m * tl.load(d_gates + (N + n) * K + k, mask=k < K, other=0.0)[:, None]
    mask = (k < K)[:, None] & (r < R)[None, :]
    tl.store(d_encoder + r[None, :] * K + k[:, None], encoder, mask=mask)
    tl.store(d_weight_decoder + k[:, None] * R + r[None, :], weight_decoder, mask=mask)
    tl.store(d_bias_decoder + k[:, None] * R + r[None, :], bias_decoder, mask=mask)


@triton.jit
def combine_kernel(
    x, grad, d_x, t, stats, m, by_group, by_key, C, P, sc, sp, G, K, N, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The gradient of x: ``grad * scale`` and the shares of both partitions."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    scale, shift, mu, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, C, G, K, FLAGS)
    mask = there[:, None] & (p < P)[None, :]
    at = start + c[:, None] * sc + p[None, :] * sp
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if ACT != "none":
        d *= activation_slope(value * scale[:, None] + shift[:, None], ACT)
    g = c // (C // G)
    a = tl.load(by_group + n * G + g, mask=there, other=0.0)
    b = tl.load(by_group + (N + n) * G + g, mask=there, other=0.0)
    result = d * scale[:, None] + a[:, None] * (value - mu[:, None]) + b[:, None]
    META: tl.constexpr = FLAGS[1]
    if META:
        k = c // (C // K)
        centre = tl.load(m + n * K + k, mask=there, other=0.0)
        a = tl.load(by_key + n * K + k, mask=there, other=0.0)
        b = tl.load(by_key + (N + n) * K + k, mask=there, other=0.0)
        result += a[:, None] * (value - centre[:, None]) + b[:, None]
    tl.store(d_x + at, result, mask=mask)
