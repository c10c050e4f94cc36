"""The passes over the large tensor: one kernel call each, whatever its memory format and type.

ILM Norm touches ``x`` three times: once for its moments, once to read it and write ``y = x * scale + shift``.
All else happens on (N, C)-sized tensors. torch has no kernel with a scale and a shift per sample *and* channel,
and its ``var_mean`` is slow on CPUs; but the statistics of a GroupNorm, and a BatchNorm in evaluation mode over
N * C channels, are exactly these passes. Layouts and devices without such a kernel get the plain formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten
# Added to the variance by the kernel that returns 1 / std, and taken off again; below any variance of interest.
_RSTD_EPS = 1e-14
# The share of the mean square that the variance must have to be taken from the difference of squares: a fourth
# costs two bits of float32.
_LEAST_VARIANCE = 1 / 4
# From this many elements on, what a kernel writes needlessly costs more than it saves.
_LARGE = 1 << 20
# Rows shorter than this are summed group by group: fewer, longer sums.
_LEAST_ROW = 256
# Below this many elements a sample, one call over the whole batch beats a loop over samples.
_LOOP_MIN_ELEMENTS = 1 << 15


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """View (N, C) as (N, C, 1, ...) so that it broadcasts against ``x`` of shape (N, C, *)."""
    return t.reshape(t.shape + (1,) * (x.dim() - 2))


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each sample's channel groups.

    Shape: ``x`` (N, C, *) to two tensors (N, num_groups), float32 (float64 for float64).
    """
    if x.numel() == 0:
        zeros = x.new_zeros((x.shape[0], num_groups), dtype=statistics_dtype(x))
        return zeros, zeros.clone()
    if x.device.type == "cpu":
        if x.is_contiguous():
            return _moments_contiguous(x, num_groups)
        if _is_channels_last(x) and x[0].numel() >= _LOOP_MIN_ELEMENTS:
            return _moments_channels_last(x, num_groups)
    return moments_formula(x, num_groups)


def moments_formula(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """:func:`moments` in differentiable operations that every backend and tracer knows."""
    grouped = x.to(statistics_dtype(x)).unflatten(1, (num_groups, -1))
    var, mean = torch.var_mean(grouped, dim=tuple(range(2, grouped.dim())), correction=0)
    return mean, var


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift``, computed in the type of ``scale`` and returned in that of ``x``.

    Shape: ``x`` (N, C, *), ``scale`` and ``shift`` (N, C).
    """
    if x.device.type == "cpu" and x.numel() and x.dim() > 2:
        if x.is_contiguous():
            y = _scale_shift_channels(x.view(1, scale.numel(), -1), scale, shift)
            # Not a view: autograd forbids to modify a view that a custom function returns in place.
            result: Tensor = _aten._unsafe_view(y, x.shape)
            return result
        # addcmul would round its coefficients to the type of x, or return a tensor of theirs.
        if x.dtype != scale.dtype and _is_channels_last(x) and x[0].numel() >= _LOOP_MIN_ELEMENTS:
            return _scale_shift_channels_last(x, scale, shift)
    return scale_shift_formula(x, scale, shift)


def scale_shift_formula(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """:func:`scale_shift` in differentiable operations that every backend and tracer knows."""
    return torch.addcmul(per_channel(shift, x), x, per_channel(scale, x)).to(x.dtype)


def combine(grad: Tensor, scale: Tensor, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """``grad * scale + x * gain + offset`` in the type of ``x``, with few tensors of its size.

    Shape: ``grad``, ``x`` (N, C, *), the coefficients (N, C).
    """
    result = scale_shift(x, gain, offset)
    if result.dtype == scale.dtype:
        return result.addcmul_(grad, per_channel(scale, x))
    return result.add_(scale_shift(grad, scale, torch.zeros_like(scale)))


def channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per sample and channel, the sums of ``grad * x`` and of ``grad`` over all positions.

    Shape: ``grad``, ``x`` (N, C, *) to two tensors (N, C) of ``dtype``.
    """
    if x.device.type == "cpu" and x.numel() and x.dim() > 2:
        if x.is_contiguous():
            shape = (1, x.shape[0] * x.shape[1], -1)
            sums = _channel_sums(grad.contiguous().view(shape), x.view(shape), dtype)
            return sums[0].view(x.shape[:2]), sums[1].view(x.shape[:2])
        if _is_channels_last(x) and x[0].numel() >= _LOOP_MIN_ELEMENTS:
            grad = grad.contiguous(memory_format=_channels_last_format(x))
            rows = [_channel_sums(g, s, dtype) for g, s in zip(grad.split(1), x.split(1), strict=True)]
            return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    return channel_sums_formula(grad, x, dtype)


def channel_sums_formula(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`channel_sums` in differentiable operations that every backend and tracer knows."""
    grad = grad.to(dtype)
    if x.dim() == 2:
        return grad * x, grad
    positions = tuple(range(2, x.dim()))
    return (grad * x).sum(positions), grad.sum(positions)


def _channels_last_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in (4, 5) and x.is_contiguous(memory_format=_channels_last_format(x))


def _moments_contiguous(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    samples, channels = x.shape[:2]
    if x.dtype in (torch.float16, torch.bfloat16):
        # A contiguous group is one long channel; the two passes of this kernel accumulate in float32.
        mean, var = _batch_statistics(x.view(1, samples * num_groups, -1))
        return mean.view(samples, num_groups), var.view(samples, num_groups)
    if x.dtype == torch.float32 and x.numel() >= _LARGE:
        moments = _moments_by_squares(x, num_groups)
        if moments is not None:
            return moments
    positions = x.numel() // (samples * channels)
    _, mean, rstd = torch.native_group_norm(x, None, None, samples, channels, positions, num_groups, _RSTD_EPS)
    return mean, rstd.pow(-2).sub_(_RSTD_EPS).clamp_(min=0)


def _moments_by_squares(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor] | None:
    """Two fast sums that write nothing large; None where the difference of squares would cancel."""
    samples, channels = x.shape[:2]
    # float32 sums of long rows lose digits: channels are merged into groups afterwards where they are long enough.
    rows = x.view(samples, channels if x.stride(1) >= _LEAST_ROW else num_groups, -1)
    mean = rows.mean(2)
    square = torch.linalg.vector_norm(rows, dim=2).square_().div_(rows.shape[2])
    if rows.shape[1] != num_groups:
        mean, square = (t.view(samples, num_groups, -1).mean(2) for t in (mean, square))
    var = torch.addcmul(square, mean, mean, value=-1)
    # False also for NaN and infinity.
    return (mean, var) if torch.sub(var, square, alpha=_LEAST_VARIANCE).amin().item() >= 0 else None


def _moments_channels_last(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    stats = [_batch_statistics(sample) for sample in x.split(1)]
    mean, var = torch.stack([s[0] for s in stats]), torch.stack([s[1] for s in stats])
    if x.dtype == torch.float32:
        # That kernel's mean is a plain running sum, which loses digits far from zero; a torch.mean doesn't.
        better = x.mean(tuple(range(2, x.dim())))
        mean, var = better, torch.addcmul(var, better - mean, better - mean, value=-1).clamp_(min=0)
    return merge_moments(mean, var, num_groups)


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (1, C, *); two passes, no cancellation."""
    # The type of the running statistics, which momentum 0 leaves alone, decides that of the result.
    running = torch.zeros(2, x.shape[1], dtype=statistics_dtype(x))
    mean, var = _aten.batch_norm_update_stats(x, running[0], running[1], 0.0)
    return mean, var


def merge_moments(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Moments of larger groups from those of equal, smaller ones (mean of variances + variance of means).

    Shape: ``mean``, ``var`` (N, F) to (N, num_groups); num_groups divides F.
    """
    if mean.shape[1] == num_groups:
        return mean, var
    grouped = mean.unflatten(1, (num_groups, -1))
    centre = grouped.mean(2, keepdim=True)
    deviation = grouped - centre
    return centre.squeeze(2), torch.addcmul(var.unflatten(1, (num_groups, -1)), deviation, deviation).mean(2)


def _scale_shift_channels(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """BatchNorm's evaluation kernel on (1, C, *), with running mean 0 and variance 1."""
    scale, shift = scale.reshape(-1), shift.reshape(-1)
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(x, scale, shift, zeros, ones, False, 0.0, 0.0)[0]


def _scale_shift_channels_last(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same kernel sample by sample, straight into the result."""
    y = torch.empty_like(x)
    zeros, ones = torch.zeros_like(scale[0]), torch.ones_like(scale[0])
    unused = scale.new_empty(0), scale.new_empty(0)
    for sample, out, w, b in zip(x.split(1), y.split(1), scale, shift, strict=True):
        torch.native_batch_norm(sample, w, b, zeros, ones, False, 0.0, 0.0, out=(out, *unused))
    return y


def _channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """BatchNorm's evaluation backward on (1, C, *), asked for the gradients of weight and bias alone."""
    ones = torch.ones(x.shape[1], dtype=dtype)
    zeros = torch.zeros_like(ones)
    mask = [False, True, True]
    sums = _aten.native_batch_norm_backward(grad, x, ones, zeros, ones, None, None, False, 0.0, mask)
    return sums[1], sums[2]
