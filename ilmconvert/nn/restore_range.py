"""The range in which the restoring path lets an instance pass as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Beyond a limit a deviation still grows by so much of half the range's width, so that the order of instances is kept.
_SATURATION = 0.1
_TINY = 1e-12  # keeps the gradient of a root finite at 0; far below what float32 resolves of 1


class RestoreRange(NamedTuple):
    """Limits of an image's contrast and of its colour, relative to the reference values over all channels.

    The contrast is what varies within channels, the colour what the channels' means are. A veil of the
    image's own colour changes the former and leaves the latter, so that they are told apart.

    Attributes:
        contrast_low, contrast_high: of log(s / ref_std), where s is the root of the channels' mean variance.
        mean_radius: of the channels' root mean square of (mean - ref_mean) / ref_std.

    >>> RestoreRange(-0.5, 0.5, 1.0).checked().mean_radius
    1.0
    """

    contrast_low: float
    contrast_high: float
    mean_radius: float

    def checked(self) -> RestoreRange:
        """Itself; raises a ValueError for an empty range."""
        if not (self.contrast_low < self.contrast_high and self.mean_radius > 0):
            raise ValueError(f"restore_range={tuple(self)} needs its lower limit below the upper one and a radius > 0")
        return self


def to_range(limits: Sequence[float]) -> RestoreRange:
    """Three numbers as a :class:`RestoreRange`.

    Raises:
        ValueError: another count, or an empty range.

    >>> to_range([-0.5, 0.5, 1.0])
    RestoreRange(contrast_low=-0.5, contrast_high=0.5, mean_radius=1.0)
    """
    if len(limits) != 3:
        raise ValueError(f"restore_range={limits} must be three numbers: low and high contrast, radius of the means")
    return RestoreRange(*limits).checked()


def knee(z: Tensor, low: float, high: float) -> Tensor:
    """``z`` within the limits; outside, it saturates shortly behind them. Continuous, and so is its derivative.

    >>> knee(torch.tensor([-9.0, 0.25, 9.0]), -0.5, 0.5)
    tensor([-0.5500,  0.2500,  0.5500])
    """
    inside = z.clamp(low, high)
    width = _SATURATION * (high - low) / 2
    return inside + width * torch.tanh((z - inside) / width)


def image_into_range(
    means: Tensor,
    variances: Tensor,
    mu: Tensor,
    ref_mean: Tensor,
    ref_std: Tensor,
    eps: float,
    limits: RestoreRange,
) -> tuple[Tensor, Tensor]:
    """The statistics that the restoring path gives an image back so that it is brought into the range.

    The image's contrast is scaled about the means of its channels. These are drawn to the reference mean: by the
    scale, where it lessens the contrast, and to the radius. The rescaling ``a * sigma' * (x - mu) / sigma + a * mu' +
    c`` does so for any groups, with ``sigma' = factor * sigma`` and, for each channel, ``mu' = mu + moved``. Inside the
    range ``moved`` is 0 and ``factor`` 1 to the last digit, and it is the source's ``a * x + c``.

    Shape: ``means``, ``variances`` (N, C) of the channels; ``mu`` (N, G) of the groups; references (G,); results
    ``moved`` (N, C) and ``factor`` (N, 1).
    """
    contrast, radius = image_deviations(means, variances, ref_mean, ref_std, eps).split(1, 1)
    factor = (knee(contrast, limits.contrast_low, limits.contrast_high) - contrast).exp()
    pull = knee(radius * factor.clamp(max=1), -limits.mean_radius, limits.mean_radius) / radius
    centre, _ = _over_groups(ref_mean, ref_std)
    groups = mu.repeat_interleave(means.shape[1] // mu.shape[1], 1)
    return (factor - 1) * (groups - means) + (pull - 1) * (means - centre), factor


def image_deviations(means: Tensor, variances: Tensor, ref_mean: Tensor, ref_std: Tensor, eps: float) -> Tensor:
    """What :class:`RestoreRange` limits, for each instance: (N, 2), of the contrast and the colour.

    Shape: ``means``, ``variances`` (N, C) of the channels; references (G,).
    """
    centre, std = _over_groups(ref_mean, ref_std)
    contrast = 0.5 * (variances.mean(1, keepdim=True) + eps).log() - std.log()
    radius = (((means - centre) / std).square().mean(1, keepdim=True) + _TINY).sqrt()
    return torch.cat((contrast, radius), 1)


def _over_groups(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all groups, (..., G) to (..., 1)."""
    whole = mean.mean(-1, keepdim=True)
    return whole, (std.square() + (mean - whole).square()).mean(-1, keepdim=True).sqrt()
