"""What the Triton kernels of the forward and the backward pass share: the coefficients of a channel, activations.

``x`` is (N, C, P), its last two dimensions in any order, by the strides ``sc`` of a channel and ``sp`` of a position.
All arithmetic is float32. Constants in capitals are compiled in. Names are those of :func:`ilmconvert.nn.ilm_norm`.

``stats`` holds what belongs to samples, one after the other: mu and sigma (N, G), the meta-network's m, v, gate and
offset (N, K), and its codes of v and m (N, R).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(z):
    return 2.0 * tl.sigmoid(2.0 * z) - 1.0


@triton.jit
def deviation(value, ref, std, bound, BOUND: tl.constexpr):
    """The deviation on the restoring path and its derivative by value times ``std``."""
    z = tl.div_rn(value - ref, std)
    if BOUND:
        t = tanh(z / bound)
        return bound * t, 1.0 - t * t
    return z, z * 0.0 + 1.0


@triton.jit
def of_keys(stats, N, G, K, i: tl.constexpr):
    """Where the i-th of m, v, gate and offset starts; the codes follow as the fifth."""
    return stats + 2 * N * G + i * N * K


@triton.jit
def channel_coefficients(n, c, mask, t, stats, bound, N, C, G, K, FLAGS: tl.constexpr):
    """Of sample n and channels c: scale and shift, mu and sigma, and how scale's parts follow both statistics."""
    AFFINE: tl.constexpr = FLAGS[0]
    META: tl.constexpr = FLAGS[1]
    RESTORE: tl.constexpr = FLAGS[2]
    BOUND: tl.constexpr = FLAGS[3]
    weight, bias, restore_weight, restore_bias, ref_mean, ref_std = t
    g = c // (C // G)
    mu = tl.load(stats + n * G + g, mask=mask, other=0.0)
    sigma = tl.load(stats + (N + n) * G + g, mask=mask, other=1.0)
    omega, beta = mu * 0.0 + 1.0, mu * 0.0
    if AFFINE:
        omega = tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
        beta = tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)
    gain, bias_gain = mu * 0.0, mu * 0.0
    if RESTORE:
        rw = tl.load(restore_weight + c, mask=mask, other=0.0).to(tl.float32)
        rb = tl.load(restore_bias + c, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(ref_mean + g, mask=mask, other=0.0).to(tl.float32)
        std = tl.load(ref_std + g, mask=mask, other=1.0).to(tl.float32)
        gain, bias_gain = tl.div_rn(rw, std), tl.div_rn(rb, std)
        if BOUND:
            z, slope = deviation(sigma, std, std, bound, True)
            z_mu, slope_mu = deviation(mu, mean, std, bound, True)
            omega, beta = omega + rw * z, beta + rb * z_mu
            gain, bias_gain = gain * slope, bias_gain * slope_mu
        else:
            omega, beta = omega - rw, beta - bias_gain * mean
    if META:
        k = c // (C // K)
        omega += tl.load(of_keys(stats, N, G, K, 2) + n * K + k, mask=mask, other=0.0)
        beta += tl.load(of_keys(stats, N, G, K, 3) + n * K + k, mask=mask, other=0.0)
    if RESTORE and not BOUND:
        scale = gain + tl.div_rn(omega, sigma)
        shift = beta + mu * (bias_gain - scale)
    else:
        scale = tl.div_rn(omega, sigma)
        shift = beta - mu * scale
    return scale, shift, mu, sigma, gain, bias_gain


@triton.jit
def activate(y, ACT: tl.constexpr):
    if ACT == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif ACT == "silu":
        y = y * tl.sigmoid(y)
    elif ACT == "hardswish":
        y = y * tl.minimum(tl.maximum(y + 3.0, 0.0), 6.0) / 6.0
    return y


@triton.jit
def activation_slope(y, ACT: tl.constexpr):
    """The derivative of :func:`activate`, as torch has it where there are two."""
    slope = y * 0.0 + 1.0
    if ACT == "relu":
        slope = tl.where(y > 0.0, 1.0, 0.0)
    elif ACT == "silu":
        s = tl.sigmoid(y)
        slope = s * (1.0 + y * (1.0 - s))
    elif ACT == "hardswish":
        slope = tl.where(y <= -3.0, 0.0, tl.where(y < 3.0, y / 3.0 + 0.5, 1.0))
    return slope


@triton.jit
def tile(C, P, sc, sp, BC: tl.constexpr):
    """The program's sample, its channels, whether they are there, and where the sample starts."""
    row = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (row // blocks).to(tl.int64)
    c = (row % blocks) * BC + tl.arange(0, BC)
    return n, c, c < C, n * C * P
