"""The form for exporters computes what the layer computes, in few operations."""

from __future__ import annotations

import warnings
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ilmconvert import ILMNorm
from ilmconvert.export.inference_form import InferenceNorm, inference_form
from tests.helpers import relative_error

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


def to_onnx(module: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto


def run(proto: Any, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("settings", [{}, {"restore": False}, {"restore": False, "affine": False}, {"affine": False}])
@pytest.mark.parametrize("case", PARTITIONS)
def test_as_the_layer(case: str, settings: dict[str, bool]) -> None:
    layer = trained(*PARTITIONS[case][0], **settings).double()
    form = InferenceNorm(layer)
    for positions in ((5, 6), (7,), (2, 3, 2), ()):
        x = instances(layer.num_channels, positions=positions).double()
        with torch.no_grad():
            assert relative_error(form(x), layer(x)) <= 1e-12


@pytest.mark.parametrize("case", PARTITIONS)
def test_nodes_and_outputs_in_onnxruntime(case: str) -> None:
    sizes, most = PARTITIONS[case]
    layer = trained(*sizes)
    x, far = instances(sizes[0]), instances(sizes[0], mean=1000.0)
    # The model itself, as whoever calls torch.onnx.export has it, and what `export` writes.
    for module in (layer, inference_form(nn.Sequential(layer))):
        proto = to_onnx(module, x)
        assert len(proto.graph.node) <= most
        for values in (x, far):
            with torch.no_grad():
                expected = layer.double()(values.double())
            layer.float()
            assert relative_error(run(proto, values), expected) <= 1e-5


def test_normalised_outputs_keep_their_digits_far_from_zero() -> None:
    layer = trained(64, 32, 16, restore=False)
    x = instances(64, mean=1000.0)
    proto = to_onnx(layer, x)
    with torch.no_grad():
        expected = layer.double()(x.double())
    # Half a unit in the last place of 1000 is 3e-5.
    assert relative_error(run(proto, x), expected) <= 1e-4


@pytest.mark.parametrize("case", PARTITIONS)
def test_operations_of_torch_export(case: str) -> None:
    sizes = PARTITIONS[case][0]
    form = inference_form(nn.Sequential(trained(*sizes)))
    program = torch.export.export(form, (instances(sizes[0]),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) <= 36


@pytest.mark.parametrize("settings", [{"restore_bound": 2.0}, {"restore_range": (-0.5, 0.5, 1.0)}, {"correction": 1}])
def test_other_layers_stay(settings: dict[str, Any]) -> None:
    layer = trained(64, 32, 16, **settings)
    (form,) = inference_form(nn.Sequential(layer))
    assert type(form) is ILMNorm
    x = instances(64)
    with torch.no_grad():
        assert relative_error(run(to_onnx(layer, x), x), layer(x)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_stay_in_float32(dtype: torch.dtype) -> None:
    layer = trained(64, 32, 16).to(dtype)
    x = instances(64, mean=30.0).to(dtype)
    form = InferenceNorm(layer)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = form(x)
    assert y.dtype == dtype
    with torch.no_grad():
        assert relative_error(y, layer.double()(x.double())) <= torch.finfo(dtype).eps
