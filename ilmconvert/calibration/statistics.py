"""What a fit needs of a layer's input and of its target: moments per sample and channel, nothing spatial."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.kernels.formulas import merge_moments
from ilmconvert.surgery.sources import NormDescription

_NO_SPREAD = 1e-10


class Moments(NamedTuple):
    """Mean and biased variance over positions, (N, C) each, float64 on the CPU; ``positions`` is their number."""

    mean: Tensor
    var: Tensor
    positions: int


class Statistics(NamedTuple):
    """One layer on N samples; all tensors (N, C), float64.

    h is the input, standardised in the layer's groups. ``omega`` and ``beta`` are what each sample would need for
    ``omega h + beta`` to have the mean and the variance of its target: those of the source's layer in the source.
    Not least squares against the target itself: where h differs from the source's by the errors of all layers
    before, that takes them for noise and shrinks omega, layer after layer.
    """

    mean_h: Tensor
    var_h: Tensor
    omega: Tensor
    beta: Tensor
    x: Moments

    def error(self, omega: Tensor, beta: Tensor) -> Tensor:
        """Mean squared distance of ``omega h + beta`` to ``self.omega h + self.beta``, per sample and channel."""
        gain = omega - self.omega
        return gain.square() * self.var_h + (gain * self.mean_h + beta - self.beta).square()

    @property
    def target_mean(self) -> Tensor:
        """Of the target, (N, C)."""
        return self.omega * self.mean_h + self.beta

    @property
    def target_var(self) -> Tensor:
        """Of the target, (N, C)."""
        return self.omega.square() * self.var_h

    def part(self, which: slice) -> Statistics:
        """Of some of the samples."""
        x = Moments(self.x.mean[which], self.x.var[which], self.x.positions)
        return Statistics(self.mean_h[which], self.var_h[which], self.omega[which], self.beta[which], x)

    def key_features(self, num_groups: int, correction: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of key groups, (N, num_groups) each."""
        return grouped(self.x, num_groups, correction)


def moments(x: Tensor) -> Moments:
    """Of an input (N, C, *)."""
    flat = x.detach().float().flatten(2) if x.dim() > 2 else x.detach().float().unsqueeze(2)
    var, mean = torch.var_mean(flat, 2, correction=0)
    return Moments(mean.cpu().double(), var.cpu().double(), flat.shape[2])


def joined(parts: list[Moments]) -> Moments:
    """Of several batches, as of one; their numbers of positions are taken for equal."""
    return Moments(torch.cat([p.mean for p in parts]), torch.cat([p.var for p in parts]), parts[0].positions)


def grouped(x: Moments, num_groups: int, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance of channel groups, (N, num_groups) each.

    >>> x = moments(torch.tensor([[0.0, 2.0]]))
    >>> [t.tolist() for t in grouped(x, 1)]
    [[[1.0]], [[1.0]]]
    """
    mean, var = merge_moments(x.mean, x.var, num_groups)
    count = x.positions * (x.mean.shape[1] // num_groups)
    return mean, var * (count / (count - correction)) if count > correction else var


def source_moments(source: NormDescription, x: Moments) -> Moments:
    """What a norm layer in evaluation mode makes of moments; a fused activation isn't applied.

    Every source is affine for a given sample and channel.
    """
    one = torch.ones(x.mean.shape[1], dtype=torch.float64, device="cpu")
    gamma = one if source.weight is None else source.weight.detach().cpu().double()
    beta = 0 * one if source.bias is None else source.bias.detach().cpu().double()
    if source.num_groups is not None:
        size = source.num_channels // source.num_groups
        mean, var = (t.repeat_interleave(size, 1) for t in grouped(x, source.num_groups))
    else:
        assert source.running_mean is not None
        assert source.running_var is not None
        mean, var = (t.detach().cpu().double() for t in (source.running_mean, source.running_var))
    gain = gamma / (var + source.eps).sqrt()
    return Moments(gain * (x.mean - mean) + beta, gain.square() * x.var, x.positions)


def statistics(
    x: Moments, target: Moments, sign: Tensor, *, num_groups: int, eps: float, correction: int = 0
) -> Statistics:
    """Of a layer with ``num_groups`` groups; ``sign`` (C,) is that of the source's gain."""
    size = x.mean.shape[1] // num_groups
    mu, var = (t.repeat_interleave(size, 1) for t in grouped(x, num_groups, correction))
    sigma = (var + eps).sqrt()
    mean_h, var_h = (x.mean - mu) / sigma, x.var / sigma.square()
    omega = sign * torch.where(var_h > _NO_SPREAD, (target.var / var_h.clamp(min=_NO_SPREAD)).sqrt(), 0.0)
    return Statistics(mean_h, var_h, omega, target.mean - omega * mean_h, x)
