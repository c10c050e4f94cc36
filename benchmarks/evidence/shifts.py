"""Shifted test images: what the protocol takes of :mod:`ilmconvert.data.corruptions`, darkness and inversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ilmconvert.data.corruptions import corrupt

#: Of the library, by the name in tables.
_CORRUPTIONS = {
    "contrast": "contrast",
    "brightness": "brightness",
    "fog": "fog",
    "noise": "gaussian noise",
    "blur": "gaussian blur",
    "colour": "color cast",
    "uneven light": "uneven light",
}
_DARKNESS = (0.5, 0.4, 0.3, 0.2, 0.1)
_INVERSION = (0.6, 0.7, 0.8, 0.9, 1.0)
_OWN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "darkness": lambda x, severity: x * _DARKNESS[severity - 1],
    "inversion": lambda x, severity: x.lerp(1 - x, _INVERSION[severity - 1]),
}
#: In the order of the tables.
SHIFTS = ("contrast", "darkness", "brightness", "fog", "noise", "blur", "colour", "uneven light", "inversion")
SEVERITIES = (3, 5)


def shift(image: Tensor, name: str, severity: int, *, seed: int) -> Tensor:
    """An image (3, H, W) from 0 to 1, shifted; the same for the same arguments.

    >>> shift(torch.ones(3, 8, 8), "darkness", 5, seed=0).max()
    tensor(0.1000)
    """
    if name in _OWN:
        return _OWN[name](image, severity)
    return corrupt(image, _CORRUPTIONS[name], severity, seed=seed)


def shifted(pixels: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Bytes (N, 3, H, W), each image shifted; the same for the same arguments."""
    found = (shift(x.float() / 255, name, severity, seed=seed * 100_003 + i) for i, x in enumerate(pixels))
    return torch.stack([(x * 255).round().to(torch.uint8) for x in found])


def shifted_sets(pixels: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The images under every shift at every severity of the protocol, by ``"name severity"``."""
    for name in SHIFTS:
        for severity in SEVERITIES:
            yield f"{name} {severity}", shifted(pixels, name, severity, seed)
