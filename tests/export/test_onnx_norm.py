"""What the exporter to ONNX takes as one operation computes what the layer does, in as few nodes as the layer's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ilmconvert import ILMNorm
from ilmconvert.export.inference_form import InferenceNorm
from ilmconvert.export.onnx_norm import translations
from tests.helpers import TOLERANCE, relative_error
from tests.nn.inference_cases import PARTITIONS, instances, run, to_onnx, trained

ANY = torch.export.Dim.DYNAMIC


def as_one(layer: ILMNorm) -> InferenceNorm:
    form = InferenceNorm(layer)
    form.as_one = True
    return form


def check(layer: ILMNorm, x: torch.Tensor, most: int, **options: Any) -> Any:
    proto = to_onnx(as_one(layer), x, custom_translation_table=translations(), **options)
    assert len(proto.graph.node) <= most
    with torch.no_grad():
        expected = layer.double()(x.double())
    found = run(proto, x)
    assert found.dtype == x.dtype
    assert relative_error(found.double(), expected) <= TOLERANCE[x.dtype]
    return proto


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c in ("the same", "instance", "layer") else c for c in PARTITIONS],
)
def test_of_every_partition(case: str) -> None:
    sizes, most = PARTITIONS[case]
    check(trained(*sizes), instances(sizes[0]), most)


@pytest.mark.parametrize("case", ["groups finer", pytest.param("key groups finer", marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{"restore": False}, {"restore": False, "affine": False}, {"affine": False}])
def test_without_a_part(case: str, settings: dict[str, bool]) -> None:
    sizes, most = PARTITIONS[case]
    check(trained(*sizes, **settings), instances(sizes[0]), most)


@pytest.mark.parametrize("positions", [(7,), (2, 3, 2), pytest.param((1, 1), marks=pytest.mark.slow), ()])
def test_inputs_of_other_dimensions(positions: tuple[int, ...]) -> None:
    sizes, most = PARTITIONS["neither"]
    check(trained(*sizes), instances(sizes[0], positions=positions), most)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_types(dtype: torch.dtype) -> None:
    sizes, most = PARTITIONS["groups finer"]
    # Two more: to float32, in which the statistics are taken, and back.
    check(trained(*sizes).to(dtype), instances(sizes[0]).to(dtype), most + 2)


def test_open_sizes() -> None:
    layer = trained(*PARTITIONS["groups finer"][0])
    proto = check(layer, instances(64), 30, dynamic_shapes=({0: ANY, 2: ANY, 3: ANY},))
    other = instances(64, positions=(9, 4))[:1]
    with torch.no_grad():
        assert relative_error(run(proto, other).double(), layer.double()(other.double())) <= TOLERANCE[torch.float32]


def test_a_layer_without_a_meta_network() -> None:
    from ilmconvert.export.fold import WithoutMeta, fold

    layer = trained(64, 32, 16)
    with torch.no_grad():
        for decoder in (layer.weight_decoder, layer.bias_decoder):
            decoder.zero_()
    (plain,) = fold(nn.Sequential(layer))
    assert isinstance(plain, WithoutMeta)
    form = InferenceNorm(plain)
    form.as_one = True
    x = instances(64)
    proto = to_onnx(form, x, custom_translation_table=translations())
    with torch.no_grad():
        assert relative_error(run(proto, x).double(), layer.double()(x.double())) <= TOLERANCE[torch.float32]
