"""The range in which the restoring path lets an instance pass as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn import kernels

# Beyond a limit a deviation still grows by so much of half the range's width, so that the order of instances is kept.
_SATURATION = 0.1


class Range(NamedTuple):
    """Limits of an instance's statistics over all channels, relative to their reference values.

    Attributes:
        std_low, std_high: of log(sigma / ref_std).
        mean_low, mean_high: of (mu - ref_mean) / ref_std.

    >>> Range(-0.5, 0.5, -0.5, 0.5).checked().std_high
    0.5
    """

    std_low: float
    std_high: float
    mean_low: float
    mean_high: float

    def checked(self) -> Range:
        """Itself; raises a ValueError if a lower limit isn't below its upper one."""
        if not (self.std_low < self.std_high and self.mean_low < self.mean_high):
            raise ValueError(f"restore_range={tuple(self)} needs each lower limit below its upper one")
        return self


def knee(z: Tensor, low: float, high: float) -> Tensor:
    """``z`` within the limits; outside, it saturates shortly behind them. Continuous, and so is its derivative.

    >>> knee(torch.tensor([-9.0, 0.25, 9.0]), -0.5, 0.5)
    tensor([-0.5500,  0.2500,  0.5500])
    """
    inside = z.clamp(low, high)
    width = _SATURATION * (high - low) / 2
    return inside + width * torch.tanh((z - inside) / width)


def into_range(mu: Tensor, sigma: Tensor, ref_mean: Tensor, ref_std: Tensor, limits: Range) -> tuple[Tensor, Tensor]:
    """The group statistics that an instance would have if it were brought into the range by one scale and one shift.

    All groups of an instance move together: their statistics over all channels say how the picture was taken, while
    what sets the groups apart says what is on it.

    Shape: ``mu``, ``sigma`` (N, G), the references (G,); two tensors (N, G).
    """
    whole_mu, whole_sigma = _over_groups(mu, sigma)
    whole_ref_mean, whole_ref_std = _over_groups(ref_mean, ref_std)
    log_ratio = (whole_sigma / whole_ref_std).log()
    scale = (knee(log_ratio, limits.std_low, limits.std_high) - log_ratio).exp()
    deviation = knee((whole_mu - whole_ref_mean) / whole_ref_std, limits.mean_low, limits.mean_high)
    shift = whole_ref_mean + whole_ref_std * deviation - scale * whole_mu
    return torch.addcmul(shift, scale, mu), scale * sigma


def whole_deviations(x: Tensor, ref_mean: Tensor, ref_std: Tensor, eps: float) -> Tensor:
    """What :class:`Range` limits, for each instance of ``x`` (N, C, *): (N, 2), of the standard deviation and the mean.

    Shape: ``ref_mean``, ``ref_std`` (G,).
    """
    mean, var = kernels.moments(x, 1)
    whole_ref_mean, whole_ref_std = _over_groups(ref_mean, ref_std)
    log_ratio = ((var + eps).sqrt() / whole_ref_std).log()
    return torch.cat((log_ratio, (mean - whole_ref_mean) / whole_ref_std), 1)


def _over_groups(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all groups, (..., G) to (..., 1)."""
    whole = mean.mean(-1, keepdim=True)
    return whole, (std.square() + (mean - whole).square()).mean(-1, keepdim=True).sqrt()
