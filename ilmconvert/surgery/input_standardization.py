"""A standardisation of each image before the first layer: it undoes every change of an image's light and contrast.

It is a forward pre-hook of the layer that reads the images, or of the block that holds all such layers, so that names
and tensors stay as they are, and ``forward_features`` has it, too. Where no layer gets the images as they are, as in a
network that changes their normalisation first, it is one of the network as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6


def standardize(x: Tensor, std: float) -> Tensor:
    """Each sample of (N, C, ...) with mean 0 and standard deviation ``std`` over all its channels and positions.

    A sample of one value becomes zeros.

    >>> standardize(3 * torch.randn(2, 3, 8, 8) + 1, 0.55).std((1, 2, 3), correction=0).round(decimals=3)
    tensor([0.5500, 0.5500])
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    deviation, mean = torch.std_mean(exact, tuple(range(1, x.dim())), keepdim=True, correction=0)
    return ((exact - mean) / deviation.clamp(min=_SMALLEST) * std).to(x.dtype)


@dataclass(frozen=True)
class InputStandardization:
    """A standardisation of each image in a network.

    Attributes:
        layer: the name of the layer before which it happens.
        std: the standard deviation that each image gets, in the network's normalised units.
    """

    layer: str
    std: float

    def __str__(self) -> str:
        return f"each image standardised to {self.std:.3g} before {self.layer or 'the network'}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"layer": self.layer, "std": self.std}

    @classmethod
    def from_dict(cls, values: Any) -> InputStandardization:
        """Of JSON values; raises a ValueError for others."""
        if isinstance(values, Mapping) and values.keys() == {"layer", "std"}:
            layer, std = values["layer"], values["std"]
            if isinstance(layer, str) and type(std) in (int, float) and math.isfinite(std) and std > 0:
                return cls(layer, float(std))
        raise ValueError("its standardisation of the input is damaged; write the file again")

    def put(self, model: nn.Module) -> None:
        """Into a network, in place of any that it has.

        Raises:
            ValueError: there is no such layer.
        """
        layer = dict(model.named_modules(remove_duplicate=False)).get(self.layer)
        if layer is None:
            raise ValueError(f"there is no layer {self.layer[:200]!r}, before which each image is to be standardised")
        remove(model)
        layer.register_forward_pre_hook(_Standardize(self.std))


@dataclass(frozen=True)
class _Standardize:
    """The hook."""

    std: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return standardize(args[0], self.std), *args[1:]


def input_standardization(model: nn.Module) -> InputStandardization | None:
    """What :func:`standardize_input` put into a network; None without."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _Standardize):
                return InputStandardization(name, hook.std)
    return None


def remove(model: nn.Module) -> None:
    """Take the standardisation out of a network, in place, if there is one."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _Standardize):
                del module._forward_pre_hooks[key]
