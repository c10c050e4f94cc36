"""The five Triton kernels of the backward pass. ``d_t`` is the derivative of the loss by ``t``."""

from __future__ import annotations

import triton
import triton.language as tl

from ilmconvert.nn.kernels.triton_common import activation_slope, channel_coefficients, deviation, of_keys, tile


@triton.jit
def sums_kernel(
    x, grad, sums, t, stats, C, P, sc, sp, chunk, S, N, G, K, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Over the positions of each of a channel's S parts, the sums of grad (x - mu) and of grad: (2, N, C, S)."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    part = tl.program_id(1)
    end = tl.minimum((part + 1) * chunk, P)
    scale, shift, mu, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, N, C, G, K, FLAGS)
    product = tl.zeros([BC, BP], tl.float32)
    total = tl.zeros([BC, BP], tl.float32)
    for p0 in range(part * chunk, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = there[:, None] & (p < end)[None, :]
        at = start + c[:, None] * sc + p[None, :] * sp
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if ACT != "none":
            d *= activation_slope(value * scale[:, None] + shift[:, None], ACT)
        product += tl.where(mask, d * (value - mu[:, None]), 0.0)
        total += d
    at = (n * C + c) * S + part
    tl.store(sums + at, tl.sum(product, 1), mask=there)
    tl.store(sums + N * C * S + at, tl.sum(total, 1), mask=there)


@triton.jit
def over_parts(values, at, mask, S, BS: tl.constexpr):
    """The sum over the S parts of each of the channels ``at``, a matrix."""
    s = tl.arange(0, BS)[None, None, :]
    parts = tl.load(values + (at * S)[:, :, None] + s, mask=mask[:, :, None] & (s < S), other=0.0)
    return tl.sum(parts, 2)


@triton.jit
def small_kernel(
    sums, t, stats, encoder, weight_decoder, bias_decoder, by_channel, by_sample,
    C, P, S, G, K, R, N, bound, unbiased, key_unbiased,
    FLAGS: tl.constexpr, BG: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """All that belongs to a sample.

    ``by_channel`` (2, N, C) gets the derivatives by the channels' factors of (x - mu) / sigma and by their summands.
    ``by_sample`` gets, as ``stats`` does, for the groups (2, N, G) and for the key groups (2, N, K) a and b of
    a (x - mean) + b, the share of each partition in the gradient of x; then the derivatives by what goes into the
    decoders' nonlinearities (2, N, K) and into the encoder's (2, N, R).
    """
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BE)[None, :]
    size = C // G
    count = size * P * 1.0
    for g0 in range(0, G, BG):
        g = g0 + tl.arange(0, BG)
        mask = (g < G)[:, None] & (i < size)
        c = g[:, None] * size + i
        scale, _, _, sigma, gain, bias_gain = channel_coefficients(n, c, mask, t, stats, bound, N, C, G, K, FLAGS)
        at = n * C + c
        product = over_parts(sums, at, mask, S, BS) / sigma
        total = over_parts(sums + N * C * S, at, mask, S, BS)
        tl.store(by_channel + at, product, mask=mask)
        tl.store(by_channel + N * C + at, total, mask=mask)
        d_sigma = tl.sum(tl.where(mask, product * (gain - scale), 0.0), 1)
        d_mu = tl.sum(tl.where(mask, total * (bias_gain - scale), 0.0), 1)
        own = tl.load(stats + (N + n) * G + g, mask=g < G, other=1.0)
        tl.store(by_sample + n * G + g, d_sigma * unbiased / (own * count), mask=g < G)
        tl.store(by_sample + (N + n) * G + g, d_mu / count, mask=g < G)
    META: tl.constexpr = FLAGS[1]
    if META:
        f = tl.arange(0, BF)[None, :]
        r = tl.arange(0, BR)
        d_code_v = tl.zeros([BR], tl.float32)
        d_code_m = tl.zeros([BR], tl.float32)
        size = C // K
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            mask = (k < K)[:, None] & (f < size)
            c = k[:, None] * size + f
            sigma = tl.load(stats + (N + n) * G + c // (C // G), mask=mask, other=1.0)
            d_gate = tl.sum(over_parts(sums, n * C + c, mask, S, BS) / sigma, 1)
            d_offset = tl.sum(over_parts(sums + N * C * S, n * C + c, mask, S, BS), 1)
            gate = tl.load(of_keys(stats, N, G, K, 2) + n * K + k, mask=k < K, other=0.0)
            offset = tl.load(of_keys(stats, N, G, K, 3) + n * K + k, mask=k < K, other=0.0)
            d_gate *= 0.25 - gate * gate
            d_offset *= 1.0 - offset * offset
            tl.store(of_keys(by_sample, N, G, K, 2) + n * K + k, d_gate, mask=k < K)
            tl.store(of_keys(by_sample, N, G, K, 3) + n * K + k, d_offset, mask=k < K)
            both = (k < K)[:, None] & (r < R)[None, :]
            rows = k[:, None] * R + r[None, :]
            w = tl.load(weight_decoder + rows, mask=both, other=0.0).to(tl.float32)
            d_code_v += tl.sum(tl.where(both, w * d_gate[:, None], 0.0), 0)
            w = tl.load(bias_decoder + rows, mask=both, other=0.0).to(tl.float32)
            d_code_m += tl.sum(tl.where(both, w * d_offset[:, None], 0.0), 0)
        codes, d_codes = of_keys(stats, N, G, K, 4), of_keys(by_sample, N, G, K, 4)
        d_code_v = tl.where(tl.load(codes + n * R + r, mask=r < R, other=0.0) > 0.0, d_code_v, 0.0)
        d_code_m = tl.where(tl.load(codes + (N + n) * R + r, mask=r < R, other=0.0) > 0.0, d_code_m, 0.0)
        tl.store(d_codes + n * R + r, d_code_v, mask=r < R)
        tl.store(d_codes + (N + n) * R + r, d_code_m, mask=r < R)
        count = size * P * 1.0
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            both = (r < R)[:, None] & (k < K)[None, :]
            w = tl.load(encoder + r[:, None] * K + k[None, :], mask=both, other=0.0).to(tl.float32)
            a, b = (
                tl.sum(w * d_code_v[:, None], 0) * 2.0 * key_unbiased / count,
                tl.sum(w * d_code_m[:, None], 0) / count,
            )
            tl.store(of_keys(by_sample, N, G, K, 0) + n * K + k, a, mask=k < K)
            tl.store(of_keys(by_sample, N, G, K, 1) + n * K + k, b, mask=k < K)


@triton.jit
def channel_gradients_kernel(
    by_channel, t, stats, d_weight, d_bias, d_restore_weight, d_restore_bias, C, G, N, bound,
    FLAGS: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of the parameters of each channel, summed over the samples in the same order every time."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    there = c < C
    g = c // (C // G)
    AFFINE: tl.constexpr = FLAGS[0]
    RESTORE: tl.constexpr = FLAGS[2]
    zeros = tl.zeros([BC, BN], tl.float32)
    omega, beta, restored_omega, restored_beta = zeros, zeros, zeros, zeros
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)[None, :]
        mask = there[:, None] & (n < N)
        at = n.to(tl.int64) * C + c[:, None]
        product = tl.load(by_channel + at, mask=mask, other=0.0)
        total = tl.load(by_channel + N * C + at, mask=mask, other=0.0)
        omega += product
        beta += total
        if RESTORE:
            mu = tl.load(stats + n * G + g[:, None], mask=mask, other=0.0)
            sigma = tl.load(stats + (N + n) * G + g[:, None], mask=mask, other=1.0)
            mean = tl.load(t[4] + g, mask=there, other=0.0).to(tl.float32)[:, None]
            std = tl.load(t[5] + g, mask=there, other=1.0).to(tl.float32)[:, None]
            z, _ = deviation(sigma, std, std, bound, FLAGS[3])
            restored_omega += product * z
            z, _ = deviation(mu, mean, std, bound, FLAGS[3])
            restored_beta += total * z
    if AFFINE:
        tl.store(d_weight + c, tl.sum(omega, 1), mask=there)
        tl.store(d_bias + c, tl.sum(beta, 1), mask=there)
    if RESTORE:
        tl.store(d_restore_weight + c, tl.sum(restored_omega, 1), mask=there)
        tl.store(d_restore_bias + c, tl.sum(restored_beta, 1), mask=there)


@triton.jit
def meta_gradients_kernel(
    stats, by_sample, d_encoder, d_weight_decoder, d_bias_decoder, G, K, R, N,
    BK: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of the meta-network, summed over the samples in the same order every time."""
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    r = tl.arange(0, BR)
    codes, d_codes = of_keys(stats, N, G, K, 4), of_keys(by_sample, N, G, K, 4)
    zeros = tl.zeros([BK, BR], tl.float32)
    encoder, weight_decoder, bias_decoder = zeros, zeros, zeros
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        of_key, is_key = n[None, :] * K + k[:, None], (k < K)[:, None] & (n < N)[None, :]
        of_code, is_code = n[None, :] * R + r[:, None], (r < R)[:, None] & (n < N)[None, :]
        m = tl.load(of_keys(stats, N, G, K, 0) + of_key, mask=is_key, other=0.0)[:, None, :]
        v = tl.load(of_keys(stats, N, G, K, 1) + of_key, mask=is_key, other=0.0)[:, None, :]
        d_v = tl.load(d_codes + of_code, mask=is_code, other=0.0)[None, :, :]
        d_m = tl.load(d_codes + N * R + of_code, mask=is_code, other=0.0)[None, :, :]
        encoder += tl.sum(d_v * v + d_m * m, 2)
        d_gate = tl.load(of_keys(by_sample, N, G, K, 2) + of_key, mask=is_key, other=0.0)[:, None, :]
        weight_decoder += tl.sum(tl.load(codes + of_code, mask=is_code, other=0.0)[None, :, :] * d_gate, 2)
        d_offset = tl.load(of_keys(by_sample, N, G, K, 3) + of_key, mask=is_key, other=0.0)[:, None, :]
        bias_decoder += tl.sum(tl.load(codes + N * R + of_code, mask=is_code, other=0.0)[None, :, :] * d_offset, 2)
    mask = (k < K)[:, None] & (r < R)[None, :]
    tl.store(d_encoder + r[None, :] * K + k[:, None], encoder, mask=mask)
    tl.store(d_weight_decoder + k[:, None] * R + r[None, :], weight_decoder, mask=mask)
    tl.store(d_bias_decoder + k[:, None] * R + r[None, :], bias_decoder, mask=mask)


@triton.jit
def combine_kernel(
    x, grad, d_x, t, stats, by_sample, C, P, sc, sp, chunk, N, G, K, bound,
    FLAGS: tl.constexpr, ACT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The gradient of x: ``grad * scale`` and the shares of both partitions, each a (x - mean) + b."""
    n, c, there, start = tile(C, P, sc, sp, BC)
    first = tl.program_id(1) * chunk
    end = tl.minimum(first + chunk, P)
    scale, shift, mu, _, _, _ = channel_coefficients(n, c, there, t, stats, bound, N, C, G, K, FLAGS)
    g = c // (C // G)
    a = tl.load(by_sample + n * G + g, mask=there, other=0.0)
    b = tl.load(by_sample + (N + n) * G + g, mask=there, other=0.0)
    META: tl.constexpr = FLAGS[1]
    key_a, centre = a * 0.0, mu
    if META:
        k = c // (C // K)
        centre = tl.load(of_keys(stats, N, G, K, 0) + n * K + k, mask=there, other=0.0)
        key_a = tl.load(of_keys(by_sample, N, G, K, 0) + n * K + k, mask=there, other=0.0)
        b += tl.load(of_keys(by_sample, N, G, K, 1) + n * K + k, mask=there, other=0.0)
    for p0 in range(first, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = there[:, None] & (p < end)[None, :]
        at = start + c[:, None] * sc + p[None, :] * sp
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if ACT != "none":
            d *= activation_slope(value * scale[:, None] + shift[:, None], ACT)
        result = d * scale[:, None] + a[:, None] * (value - mu[:, None]) + b[:, None]
        if META:
            result += key_a[:, None] * (value - centre[:, None])
        tl.store(d_x + at, result, mask=mask)
