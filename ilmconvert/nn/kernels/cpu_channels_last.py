"""The passes over a channels_last tensor on a CPU: one kernel call a sample, or a few over all of them.

A kernel that works on channels in the last dimension has one value per channel, so that each sample needs its own
call. Where samples are small, their starts weigh more than what they save. Shapes and results are those of
:mod:`ilmconvert.nn.kernels.formulas`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ilmconvert.nn.kernels import formulas
from ilmconvert.nn.kernels.cpu_contiguous import _RSTD_EPS, batch_statistics, cancels, variance
from ilmconvert.nn.kernels.formulas import merge_moments, per_channel, statistics_dtype

_aten = torch.ops.aten
# Samples with fewer elements are worked on together.
_LARGE_SAMPLE = 1 << 17
# Elements of a block that stays in the cache between the operations on it.
_BLOCK = 1 << 18


def memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    return x.dim() in (4, 5) and x.is_contiguous(memory_format=memory_format(x))


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    per_sample = _has_large_samples(x)
    mean, var = _moments_by_sample(x) if per_sample else _moments_of_batch(x, num_groups)
    # Both kernels lose digits far from zero: the one its mean, a plain running sum, the other its variance.
    if cancels(mean, var):
        mean, var = _moments_far_from_zero(x)
    return merge_moments(mean, var, num_groups)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # addcmul would round its coefficients to the type of x, or return a tensor of theirs.
    if x.dtype == scale.dtype:
        return formulas.scale_shift(x, scale, shift)
    if _has_large_samples(x):
        y = torch.empty_like(x)
        for parts in zip(x.split(1), scale, shift, y.split(1), strict=True):
            _scale_shift_sample(*parts)
        return y
    return _linear(shift, (x, scale))


def combine(grad: Tensor, scale: Tensor, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    if x.dtype == scale.dtype:
        return formulas.scale_shift(x, gain, offset).addcmul_(grad, per_channel(scale, x))
    if not _has_large_samples(x):
        return _linear(offset, (x, gain), (grad, scale))
    y, grad = torch.empty_like(x), grad.contiguous(memory_format=memory_format(x))
    other, zeros = torch.empty_like(x[:1]), torch.zeros_like(scale[0])
    for g, a, s, b, c, out in zip(grad.split(1), scale, x.split(1), gain, offset, y.split(1), strict=True):
        _scale_shift_sample(s, b, c, out)
        _scale_shift_sample(g, a, zeros, other)
        out.add_(other)
    return y


def _linear(shift: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """``shift`` plus the sum of tensor times (N, C) coefficient, in their type, a few samples at a time."""
    y = torch.empty_like(terms[0][0])
    for part, (buffer, total) in _blocks(y, shift.dtype, 2):
        offset = per_channel(shift[part], y)
        for tensor, coefficient in terms:
            torch.addcmul(offset, buffer.copy_(tensor[part]), per_channel(coefficient[part], y), out=total)
            offset = total
        y[part].copy_(total)
    return y


def _blocks(x: Tensor, dtype: torch.dtype, count: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Slices of samples that fit in the cache, each with ``count`` buffers, the same ones for all slices."""
    step = max(1, _BLOCK * len(x) // x.numel())
    buffers = tuple(torch.empty_like(x[:step], dtype=dtype) for _ in range(count))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        yield part, tuple(b[: part.stop - start] for b in buffers)


def channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if not _has_large_samples(x):
        return _block_sums(grad, x, dtype)
    grad = grad.contiguous(memory_format=memory_format(x))
    rows = [_sample_sums(g, s, dtype) for g, s in zip(grad.split(1), x.split(1), strict=True)]
    return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])


def _has_large_samples(x: Tensor) -> bool:
    return x.numel() >= _LARGE_SAMPLE * x.shape[0]


def _moments_by_sample(x: Tensor) -> tuple[Tensor, Tensor]:
    stats = [batch_statistics(sample) for sample in x.split(1)]
    return torch.stack([s[0] for s in stats]), torch.stack([s[1] for s in stats])


def _moments_of_batch(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    samples, channels = x.shape[:2]
    # Types of the statistics are those of the weight.
    weight = torch.ones(channels, dtype=statistics_dtype(x), device=x.device)
    positions = x.numel() // (samples * channels)
    _, mean, rstd = torch.native_group_norm(x, weight, weight, samples, channels, positions, num_groups, _RSTD_EPS)
    return mean, variance(rstd)


def _moments_far_from_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _moments_by_sample(x)
    better = x.mean(tuple(range(2, x.dim())), dtype=mean.dtype)
    return better, torch.addcmul(var, better - mean, better - mean, value=-1).clamp_(min=0)


def _scale_shift_sample(sample: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """BatchNorm's evaluation with running mean 0 and variance 1 of (1, C, *), into ``out``."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    outputs = out, scale.new_empty(0), scale.new_empty(0)
    torch.native_batch_norm(sample, scale, shift, zeros, ones, False, 0.0, 0.0, out=outputs)


def _block_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    positions = tuple(range(2, x.dim()))
    products, sums = torch.empty(2, *x.shape[:2], dtype=dtype, device=x.device)
    for part, (g, product) in _blocks(x, dtype, 2):
        torch.sum(g.copy_(grad[part]), positions, out=sums[part])
        torch.sum(product.copy_(x[part]).mul_(g), positions, out=products[part])
    return products, sums


def _sample_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """BatchNorm's evaluation backward on (1, C, *), asked for the gradients of weight and bias alone."""
    ones = torch.ones(x.shape[1], dtype=dtype, device=x.device)
    zeros = torch.zeros_like(ones)
    sums = _aten.native_batch_norm_backward(grad, x, ones, zeros, ones, None, None, False, 0.0, [False, True, True])
    return sums[1], sums[2]
