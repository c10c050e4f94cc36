"""The form for exporters computes what the layer computes, in few operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ilmconvert import ILMNorm
from ilmconvert.export.inference_form import InferenceNorm, inference_form
from tests.helpers import relative_error
from tests.nn.inference_cases import PARTITIONS, instances, run, to_onnx, trained


@pytest.mark.parametrize("settings", [{}, {"restore": False}, {"restore": False, "affine": False}, {"affine": False}])
@pytest.mark.parametrize("case", PARTITIONS)
def test_as_the_layer(case: str, settings: dict[str, bool]) -> None:
    layer = trained(*PARTITIONS[case][0], **settings).double()
    form = InferenceNorm(layer)
    for positions in ((5, 6), (7,), (2, 3, 2), ()):
        x = instances(layer.num_channels, positions=positions).double()
        with torch.no_grad():
            assert relative_error(form(x), layer(x)) <= 1e-12


def test_a_layer_without_tensors_is_as_exact_as_the_model() -> None:
    """Without a meta-network that does anything and without an affine part nothing is left of it but its settings."""
    model = nn.Sequential(nn.Conv2d(3, 32, 1), ILMNorm(32, 8, affine=False, input_dims=4)).double()
    form = inference_form(model)
    assert isinstance(form[1], InferenceNorm)
    x = instances(3, positions=(5, 6)).double()
    with torch.no_grad():
        assert relative_error(form(x), model(x)) <= 1e-12


@pytest.mark.parametrize("case", [c if c == "neither" else pytest.param(c, marks=pytest.mark.slow) for c in PARTITIONS])
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
