"""The passes over the large tensor, each by the fastest route for its device, memory format and type.

ILM Norm touches ``x`` three times: once or twice for its moments, once to read it and write
``y = x * scale + shift``. All else happens on (N, C)-sized tensors. Layouts and devices without a kernel of their own
get the plain formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilmconvert.nn.kernels import cpu_channels_last, cpu_contiguous, formulas
from ilmconvert.nn.kernels.formulas import statistics_dtype


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """:func:`ilmconvert.nn.kernels.formulas.moments`, as good as with float64 sums for any mean."""
    if x.numel() == 0:
        zeros = x.new_zeros((x.shape[0], num_groups), dtype=statistics_dtype(x))
        return zeros, zeros.clone()
    if x.device.type == "cpu":
        if x.is_contiguous():
            return cpu_contiguous.moments(x, num_groups)
        if cpu_channels_last.is_channels_last(x):
            return cpu_channels_last.moments(x, num_groups)
    return formulas.moments(x, num_groups)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """:func:`ilmconvert.nn.kernels.formulas.scale_shift`."""
    if _has_positions_on_cpu(x):
        if x.is_contiguous():
            return cpu_contiguous.scale_shift(x, scale, shift)
        if cpu_channels_last.is_channels_last(x):
            return cpu_channels_last.scale_shift(x, scale, shift)
    return formulas.scale_shift(x, scale, shift)


def combine(grad: Tensor, scale: Tensor, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """``grad * scale + x * gain + offset`` in the type of ``x``, with few tensors of its size.

    Shape: ``grad``, ``x`` (N, C, *), the coefficients (N, C).
    """
    if _has_positions_on_cpu(x):
        if x.is_contiguous():
            return cpu_contiguous.combine(grad, scale, x, gain, offset)
        if cpu_channels_last.is_channels_last(x):
            return cpu_channels_last.combine(grad, scale, x, gain, offset)
    result = scale_shift(x, gain, offset)
    if x.dtype == scale.dtype:
        return result.addcmul_(grad, formulas.per_channel(scale, x))
    return result.add_(scale_shift(grad, scale, torch.zeros_like(scale)))


def channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`ilmconvert.nn.kernels.formulas.channel_sums`."""
    if _has_positions_on_cpu(x):
        if x.is_contiguous():
            return cpu_contiguous.channel_sums(grad, x, dtype)
        if cpu_channels_last.is_channels_last(x):
            return cpu_channels_last.channel_sums(grad, x, dtype)
    return formulas.channel_sums(grad, x, dtype)


def _has_positions_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dim() > 2 and x.numel() > 0
