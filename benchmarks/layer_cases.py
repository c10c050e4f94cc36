"""What :mod:`benchmarks.layer` and :mod:`benchmarks.layer_memory` measure: layers, shapes, and a turn of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.reference_layer import AuthorsLayer
from ilmconvert.nn import ILMNorm

Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = (
    (8, 64, 112, 112),
    (8, 256, 56, 56),
    (8, 512, 28, 28),
    (8, 2048, 7, 7),
    (2, 256, 200, 200),
    (64, 64, 32, 32),
)
QUICK_SHAPES: tuple[Shape, ...] = ((2, 64, 14, 14), (2, 128, 7, 7))
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ILM, GROUP, BATCH, AUTHORS = "ILMNorm", "GroupNorm", "BatchNorm2d", "authors"


def ilm_norm(channels: int, groups: int) -> ILMNorm:
    """With a restoring path and a meta-network that both do something."""
    layer = ILMNorm(channels, groups, restore=True)
    with torch.no_grad():
        for parameter in (layer.weight_decoder, layer.bias_decoder, layer.restore_weight, layer.restore_bias):
            assert parameter is not None
            parameter.normal_(std=0.1)
    return layer


def layers(channels: int, memory_format: str, all_groups: bool) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        ILM: ilm_norm(channels, 32),
        GROUP: nn.GroupNorm(32, channels),
        BATCH: nn.BatchNorm2d(channels),
    }
    if memory_format == "contiguous":
        found[AUTHORS] = AuthorsLayer(channels)
    if all_groups:
        found |= {"ILMNorm, G = 1": ilm_norm(channels, 1), "ILMNorm, G = C": ilm_norm(channels, channels)}
    return found


def inference(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def turn() -> Tensor:
        with torch.no_grad():
            y: Tensor = layer(x)
        return y

    return turn


def training(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    leaves = [x.detach().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]

    def turn() -> Tensor:
        return torch.autograd.grad(layer(leaves[0]), leaves, grad)[0]

    return turn


def cases(shapes: tuple[Shape, ...], dtypes: list[str]) -> Iterator[tuple[int, Shape, str, str]]:
    for (index, shape), name, dtype in itertools.product(enumerate(shapes), FORMATS, dtypes):
        yield index, shape, name, dtype


def make_input(shape: Shape, memory_format: str, dtype: str, device: str) -> Tensor:
    x = torch.randn(shape, device=device).to(DTYPES[dtype])
    return x.contiguous(memory_format=FORMATS[memory_format])
