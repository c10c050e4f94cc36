"""The passes over a contiguous tensor on a CPU, by the kernels of other layers.

torch has no kernel with a scale and a shift per sample *and* channel, and its ``var_mean`` is slow on CPUs. But a
BatchNorm over N * C channels, or a GroupNorm over one sample of as many, does exactly these passes. Shapes and
results are those of :mod:`ilmconvert.nn.kernels.formulas`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilmconvert.nn.kernels.formulas import merge_moments, statistics_dtype

_aten = torch.ops.aten
# Added to the variance by the kernel that returns 1 / std, and taken off again; below any variance of interest.
_RSTD_EPS = 1e-14
# The share of the mean square that the variance must have to be taken from the difference of squares: a fourth
# costs two bits of float32.
_LEAST_VARIANCE = 1 / 4
# From this many elements on, a kernel that also writes its output costs more than a few more small operations.
_LARGE = 1 << 19
# float32 sums of longer rows lose digits: they are split into channels, and these merged afterwards.
_LONGEST_ROW = 1 << 15
# From this length of a channel on, a kernel's own start of each row is worth its single pass, unless all of ``x`` is in
# the cache, where a second pass costs less.
_LONG_CHANNEL = 256
_IN_CACHE = 1 << 20


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    samples, channels = x.shape[:2]
    if x.dtype in (torch.float16, torch.bfloat16):
        # A contiguous group is one long channel; the two passes of this kernel accumulate in float32.
        mean, var = batch_statistics(x.view(1, samples * num_groups, -1))
        return mean.view(samples, num_groups), var.view(samples, num_groups)
    if x.dtype == torch.float32 and x.numel() >= _LARGE:
        found = _moments_by_squares(x, num_groups)
        if found is not None:
            return found
    positions = x.numel() // (samples * channels)
    _, mean, rstd = torch.native_group_norm(x, None, None, samples, channels, positions, num_groups, _RSTD_EPS)
    return mean, variance(rstd)


def variance(rstd: Tensor) -> Tensor:
    """The variance that a kernel called with ``_RSTD_EPS`` divided by."""
    return rstd.pow(-2).sub_(_RSTD_EPS).clamp_(min=0)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (1, C, *); two passes, no cancellation."""
    # The type of the running statistics, which momentum 0 leaves alone, decides that of the result.
    running = torch.zeros(2, x.shape[1], dtype=statistics_dtype(x), device=x.device)
    mean, var = _aten.batch_norm_update_stats(x, running[0], running[1], 0.0)
    return mean, var


def cancels(mean: Tensor, var: Tensor) -> bool:
    """Whether some variance is so small beside the square of its mean that a difference of squares loses it."""
    ratio = _LEAST_VARIANCE / (1 - _LEAST_VARIANCE)
    # So put that NaN and infinity cancel too.
    return not torch.addcmul(var, mean, mean, value=-ratio).amin().item() >= 0


def _moments_by_squares(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor] | None:
    """Two fast sums that write nothing large; None where the difference of squares would cancel."""
    samples, channels = x.shape[:2]
    whole_groups = x.numel() <= _LONGEST_ROW * samples * num_groups
    rows = x.view(samples, num_groups if whole_groups else channels, -1)
    # On small maps every operation counts: a mean is slower than a sum, and an integer factor than a float.
    share = 1.0 / rows.shape[2]
    mean = rows.sum(2).mul_(share)
    var = torch.linalg.vector_norm(rows, dim=2).square_().mul_(share).addcmul_(mean, mean, value=-1)
    return None if cancels(mean, var) else merge_moments(mean, var, num_groups)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    if x.dtype == scale.dtype and (x.numel() < _IN_CACHE or x.numel() < _LONG_CHANNEL * scale.numel()):
        by_channel = (*scale.shape, -1)
        torch.mul(x.view(by_channel), scale.unsqueeze(2), out=y.view(by_channel)).add_(shift.unsqueeze(2))
        return y
    # BatchNorm's evaluation with running mean 0 and variance 1 of (1, N * C, *)
    scale, shift = scale.reshape(-1), shift.reshape(-1)
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    outputs = _rows(y).unsqueeze(0), scale.new_empty(0), scale.new_empty(0)
    torch.native_batch_norm(_rows(x).unsqueeze(0), scale, shift, zeros, ones, False, 0.0, 0.0, out=outputs)
    return y


def combine(grad: Tensor, scale: Tensor, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    y = scale_shift(x, gain, offset)
    if y.dtype == scale.dtype:
        _rows(y).addcmul_(_rows(grad.contiguous()), scale.view(-1, 1))
        return y
    return y.add_(scale_shift(grad.contiguous(), scale, torch.zeros_like(scale)))


def _rows(x: Tensor) -> Tensor:
    return x.view(x.shape[0] * x.shape[1], -1)


def channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """GroupNorm's backward on (1, N * C, *) as one group, asked for the gradients of weight and bias alone."""
    channels = x.shape[0] * x.shape[1]
    grad, rows = grad.contiguous().view(1, channels, -1), x.view(1, channels, -1)
    # Only the shape and the type of the weight are looked at.
    weight = torch.empty(channels, dtype=dtype, device=x.device)
    mean, rstd = torch.zeros(1, 1, dtype=dtype, device=x.device), torch.ones(1, 1, dtype=dtype, device=x.device)
    _, products, sums = _aten.native_group_norm_backward(
        grad, rows, mean, rstd, weight, 1, channels, rows.shape[2], 1, [False, True, True]
    )
    return products.view(x.shape[:2]), sums.view(x.shape[:2])
