"""The small ResNet of the comparison from scratch, and the norms that it is trained with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilmconvert.nn import ILMNorm

_WIDTHS = (16, 32, 64)

MakeNorm = Callable[[int], nn.Module]


def _ilm(groups: Callable[[int], int], key_group_size: int = 16, reduction: int = 16) -> MakeNorm:
    return lambda channels: ILMNorm(channels, groups(channels), key_group_size=key_group_size, reduction=reduction)


def authors_start(layer: ILMNorm) -> ILMNorm:
    """The initial values of the authors' code: random decoders, and a scale of about 1.49, in place."""
    with torch.no_grad():
        for matrix in (layer.encoder, layer.weight_decoder, layer.bias_decoder):
            bound = matrix.shape[1] ** -0.5  # of nn.Linear
            matrix.uniform_(-bound, bound)
        if layer.weight is not None:
            layer.weight.fill_(1.5)
    return layer


def _half(channels: int) -> int:
    return channels // 2


def _one(channels: int) -> int:
    return 1


def _all(channels: int) -> int:
    return channels


#: Norms by name; each ILM Norm stands behind the norm that it is to be compared with.
NORMS: dict[str, MakeNorm] = {
    "BN": nn.BatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(_half(channels), channels),
    "ILM-GN": _ilm(_half),
    "ILM-GN, authors' start": lambda channels: authors_start(ILMNorm(channels, _half(channels))),
    "ILM-GN, key groups of 4": _ilm(_half, key_group_size=4),
    "ILM-GN, key groups of 4, wide": _ilm(_half, key_group_size=4, reduction=1),
    "LN": lambda channels: nn.GroupNorm(1, channels),
    "ILM-LN": _ilm(_one),
    "IN": lambda channels: nn.GroupNorm(channels, channels),
    "ILM-IN": _ilm(_all),
}
BASES = {"ILM-GN": "GN", "ILM-LN": "LN", "ILM-IN": "IN"}


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def small_resnet(norm: MakeNorm, inputs: int = 1, num_classes: int = 10) -> nn.Sequential:
    """One block a stage, 16 to 64 channels, for images of 28 or 32 pixels and ``inputs`` channels.

    >>> small_resnet(NORMS["ILM-GN"])(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    stem = (nn.Conv2d(inputs, _WIDTHS[0], 3, 1, 1, bias=False), norm(_WIDTHS[0]), nn.ReLU())
    widths = (_WIDTHS[0], *_WIDTHS)
    blocks = [Block(a, b, 1 if a == b else 2, norm) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], num_classes))
