"""Common corruptions of a photograph at five severities.

Contrast, brightness, fog, noise, blur and JPEG follow Hendrycks, Dietterich: *Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations* (ICLR 2019, arXiv 1903.12261), with the levels that their code
has for ImageNet at 224 pixels. The light and colour of the others come from simple models that stand at each function.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

SEVERITIES = (1, 2, 3, 4, 5)

Corrupt = Callable[..., Tensor]


@dataclass(frozen=True)
class Corruption:
    """A function of an image, a level and a random generator, and its level at each severity."""

    function: Corrupt
    levels: tuple[object, ...]


def corrupt(image: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """One image, corrupted; always the same for the same arguments.

    Args:
        image: (3, H, W), RGB from 0 to 1.
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of noise, directions and clouds. Give every image of a set its own.

    Returns:
        (3, H, W), from 0 to 1.

    Raises:
        ValueError: no such corruption or severity, or an image of another shape.

    >>> grey = torch.full((3, 32, 32), 0.5)
    >>> [round(corrupt(grey, "gaussian noise", s).std().item(), 1) for s in (1, 5)]
    [0.1, 0.3]
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; use one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity} must be from 1 to 5")
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image of shape (3, H, W), got {tuple(image.shape)}")
    chosen = CORRUPTIONS[name]
    # zlib's checksum, since Python's hash of a string differs between runs; the same clouds at every severity
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    level = chosen.levels[severity - 1]
    with torch.device("cpu"):  # where the generator is, whatever the default device
        return chosen.function(image.float().cpu(), level, generator).clamp(0, 1).to(image)


def _contrast(x: Tensor, factor: float, _: torch.Generator) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * factor + mean


def _brightness(x: Tensor, added: float, _: torch.Generator) -> Tensor:
    """Added to the value of HSV; hue and saturation stay."""
    value = x.amax(0, keepdim=True)
    scaled = x * ((value + added).clamp(max=1) / value.clamp(min=1e-6))
    return torch.where(value > 0, scaled, torch.full_like(x, added))


def _gamma(x: Tensor, exponent: float, _: torch.Generator) -> Tensor:
    return x.clamp(min=0).pow(exponent)


def _color_cast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A coloured lamp (von Kries): one channel unchanged, the others darker by half and all of ``strength``."""
    gains = 1 - strength * torch.tensor([0.0, 0.5, 1.0])[torch.randperm(3, generator=generator)]
    return x * gains.view(3, 1, 1)


def _fog(x: Tensor, level: tuple[float, float], generator: torch.Generator) -> Tensor:
    density, decay = level
    peak = x.max()
    return (x + density * plasma(x.shape[1:], decay, generator)) * peak / (peak + density)


def _uneven_light(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Full light at one side, less by ``strength`` at the opposite one."""
    return x * (1 - strength * _ramp(x, generator))


def _local_contrast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A veil of the mean colour, from nothing at one side to ``strength`` at the opposite one."""
    return x.lerp(x.mean((1, 2), keepdim=True), strength * _ramp(x, generator))


def _gaussian_noise(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x.clamp(min=0) * photons, generator=generator) / photons


def _gaussian_blur(x: Tensor, sigma: float, _: torch.Generator) -> Tensor:
    blurred: Tensor = tvf.gaussian_blur(x, [2 * round(4 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def _defocus_blur(x: Tensor, level: tuple[int, float], _: torch.Generator) -> Tensor:
    """A disk of a radius, smoothed by a Gaussian of width ``level[1]``."""
    radius, smoothing = level
    reach = torch.arange(-radius - 2, radius + 3)
    disk = (reach.view(-1, 1).square() + reach.square() <= radius**2).float()
    return _convolve(x, tvf.gaussian_blur(disk.unsqueeze(0), [3 if radius <= 8 else 5] * 2, [smoothing] * 2)[0])


def _motion_blur(x: Tensor, level: tuple[int, float], generator: torch.Generator) -> Tensor:
    """Along a line within 45 degrees of the horizontal, fading as a Gaussian of width ``level[1]``."""
    radius, sigma = level
    angle = (torch.rand((), generator=generator).item() - 0.5) * math.pi / 2
    steps = torch.arange(2 * radius + 1, dtype=torch.float32)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = torch.zeros(4 * radius + 1, 4 * radius + 1)
    rows, columns = ((steps * trig(angle)).round().long() + 2 * radius for trig in (math.sin, math.cos))
    return _convolve(x, kernel.index_put((rows, columns), weights, accumulate=True))


def _jpeg(x: Tensor, quality: int, _: torch.Generator) -> Tensor:
    from PIL import Image

    buffer = io.BytesIO()
    tvf.to_pil_image(x.clamp(0, 1)).save(buffer, "JPEG", quality=quality)
    decoded: Tensor = tvf.pil_to_tensor(Image.open(buffer))
    return decoded.float() / 255


def _mixture(x: Tensor, level: tuple[float, float, float, float], generator: torch.Generator) -> Tensor:
    """A coloured lamp to one side of a hazy scene, and the noise of a weak exposure."""
    cast, light, factor, std = level
    lit = _uneven_light(_color_cast(x, cast, generator), light, generator)
    return _gaussian_noise(_contrast(lit, factor, generator), std, generator)


def plasma(size: tuple[int, ...], decay: float, generator: torch.Generator) -> Tensor:
    """Clouds (H, W) from 0 to 1: noise of every octave, its amplitude divided by ``decay**2`` from one to the next.

    That is what the authors' diamond-square algorithm comes to, which multiplies by its amplitude twice.
    """
    height, width = size
    clouds, side, amplitude = torch.zeros(1, 1, height, width), 2, 1.0
    while side <= 2 * max(size):
        noise = 2 * torch.rand(1, 1, side, side, generator=generator) - 1
        enlarged = F.interpolate(noise, size=(max(size),) * 2, mode="bilinear", align_corners=True)
        clouds += amplitude * enlarged[..., :height, :width]
        side, amplitude = 2 * side, amplitude / decay**2
    clouds -= clouds.min()
    return (clouds / clouds.max().clamp(min=1e-6))[0, 0]


def _ramp(x: Tensor, generator: torch.Generator) -> Tensor:
    """(H, W) from 0 at one side to 1 at the opposite one, in a random direction."""
    angle = torch.rand((), generator=generator).item() * 2 * math.pi
    rows, columns = (torch.linspace(-1, 1, n) for n in x.shape[1:])
    ramp = math.sin(angle) * rows.unsqueeze(1) + math.cos(angle) * columns
    return (ramp - ramp.min()) / (ramp.max() - ramp.min()).clamp(min=1e-6)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    height, width = kernel.shape
    padded = F.pad(x.unsqueeze(0), (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    weights = (kernel / kernel.sum()).expand(3, 1, height, width)
    return F.conv2d(padded, weights, groups=3)[0]


#: All of them by name; the keys are what users see.
CORRUPTIONS = {
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "high contrast": Corruption(_contrast, (1.5, 2.0, 3.0, 4.0, 6.0)),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "gamma": Corruption(_gamma, (1.5, 2.0, 2.5, 3.0, 4.0)),
    "color cast": Corruption(_color_cast, (0.3, 0.45, 0.6, 0.75, 0.9)),
    "fog": Corruption(_fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "uneven light": Corruption(_uneven_light, (0.5, 0.7, 0.8, 0.9, 1.0)),
    "local contrast": Corruption(_local_contrast, (0.5, 0.7, 0.8, 0.9, 1.0)),
    "gaussian noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": Corruption(_shot_noise, (60.0, 25.0, 12.0, 5.0, 3.0)),
    "gaussian blur": Corruption(_gaussian_blur, (1.0, 2.0, 3.0, 4.0, 6.0)),
    "defocus blur": Corruption(_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "motion blur": Corruption(_motion_blur, ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))),
    "jpeg": Corruption(_jpeg, (25, 18, 15, 10, 7)),
    "mixture": Corruption(
        _mixture,
        (
            (0.2, 0.3, 0.7, 0.02),
            (0.3, 0.45, 0.5, 0.03),
            (0.4, 0.6, 0.4, 0.04),
            (0.5, 0.7, 0.3, 0.05),
            (0.6, 0.8, 0.2, 0.06),
        ),
    ),
}
