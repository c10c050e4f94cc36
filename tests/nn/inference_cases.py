"""Layers of every partition of the channels, and what onnxruntime makes of them."""

from __future__ import annotations

import warnings
from typing import Any

import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ilmconvert import ILMNorm

# (channels, groups, key group size), and the most ONNX nodes of such a layer. In the last one neither partition
# refines the other.
PARTITIONS = {
    "groups finer": ((64, 32, 16), 24),
    "the same": ((64, 4, 16), 22),
    "key groups finer": ((128, 2, 16), 25),
    "instance": ((32, 32, 8), 24),
    "layer": ((64, 1, 16), 25),
    "neither": ((96, 32, 16), 28),
}


def trained(channels: int, groups: int, key_group_size: int, **settings: Any) -> ILMNorm:
    torch.manual_seed(0)
    layer = ILMNorm(channels, groups, key_group_size=key_group_size, **{"restore": True, **settings})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        if layer.ref_std is not None and layer.ref_mean is not None:
            layer.ref_std.uniform_(0.5, 2)
            layer.ref_mean.normal_()
    return layer.eval()


def instances(channels: int, *, mean: float = 0.0, positions: tuple[int, ...] = (5, 6)) -> Tensor:
    """Channels of their own means and scales, about ``mean``."""
    generator = torch.Generator().manual_seed(1)
    size = (3, channels, *(1 for _ in positions))
    scale = 0.5 + torch.rand(size, generator=generator)
    offset = torch.randn(size, generator=generator)
    return mean + offset + scale * torch.randn((3, channels, *positions), generator=generator)


def to_onnx(module: nn.Module, x: Tensor, **options: Any) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, (x,), dynamo=True, verbose=False, **options).model_proto


def run(proto: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:  # onnxruntime has no convolutions in it
        return torch.from_numpy(ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})[0])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
