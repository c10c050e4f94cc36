"""The passes over the large tensor as plain formulas: what every device, compiler and transform understands."""

from __future__ import annotations

import torch
from torch import Tensor


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
    grouped = x.to(statistics_dtype(x)).unflatten(1, (num_groups, -1))
    var, mean = torch.var_mean(grouped, dim=tuple(range(2, grouped.dim())), correction=0)
    return mean, var


def merge_moments(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Moments of larger groups from those of equal, smaller ones (mean of variances + variance of means).

    Shape: ``mean``, ``var`` (N, F) to (N, num_groups); num_groups divides F.
    """
    if mean.shape[1] == num_groups:
        return mean, var
    shape = (mean.shape[0], num_groups, mean.shape[1] // num_groups)
    grouped = mean.view(shape)
    centre = grouped.mean(2, keepdim=True)
    deviation = grouped - centre
    return centre.squeeze(2), torch.addcmul(var.view(shape), deviation, deviation).mean(2)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift``, computed in the type of ``scale`` and returned in that of ``x``.

    Shape: ``x`` (N, C, *), ``scale`` and ``shift`` (N, C).
    """
    return torch.addcmul(per_channel(shift, x), x, per_channel(scale, x)).to(x.dtype)


def channel_sums(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per sample and channel, the sums of ``grad * x`` and of ``grad`` over all positions.

    Shape: ``grad``, ``x`` (N, C, *) to two tensors (N, C) of ``dtype``.
    """
    grad = grad.to(dtype)
    if x.dim() == 2:
        return grad * x, grad
    positions = tuple(range(2, x.dim()))
    return (grad * x).sum(positions), grad.sum(positions)
