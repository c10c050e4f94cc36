"""Conversions of models on an accelerator: nothing mixes its tensors with the CPU's, and the values are the same."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ilmconvert import ConversionError, ILMNorm, convert, undo
from ilmconvert.surgery.group_norm_baseline import baseline, group_norm_baseline
from ilmconvert.surgery.targets import config_of
from ilmconvert.testing import randomize_norms, wake_parameters
from tests.helpers import source_network
from tests.pretend_device import DEVICE, moved, pretend_device, same_there, small_network
from tests.surgery.foreign_norms import DetrFrozenBatchNorm

CHANNELS = 12
BATCH_LEVEL: tuple[nn.Module, ...] = (
    nn.BatchNorm1d(CHANNELS),
    nn.BatchNorm2d(CHANNELS),
    nn.BatchNorm3d(CHANNELS),
    nn.BatchNorm2d(CHANNELS, affine=False),
    BatchNormAct2d(CHANNELS, act_layer=nn.PReLU),
    freeze_batch_norm_2d(nn.Sequential(BatchNormAct2d(CHANNELS)))[0],
    FrozenBatchNorm2d(CHANNELS, eps=0.0),
    DetrFrozenBatchNorm(CHANNELS),  # recognised by its values
)
INSTANCE_LEVEL: tuple[nn.Module, ...] = (
    nn.GroupNorm(3, CHANNELS),
    GroupNormAct(CHANNELS, num_groups=3, act_layer=nn.SiLU),
    nn.GroupNorm(1, CHANNELS),  # a LayerNorm over channels and positions
    nn.InstanceNorm2d(CHANNELS),
    nn.InstanceNorm2d(CHANNELS, affine=True),
)
EVERYTHING = BATCH_LEVEL + INSTANCE_LEVEL
SINGLE, HALF, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
CASES: dict[str, tuple[tuple[nn.Module, ...], dict[str, Any], tuple[torch.dtype, ...]]] = {
    "ilm_gn": (EVERYTHING, {}, (SINGLE, HALF, BFLOAT16)),
    "ilm_ln": (BATCH_LEVEL, {"to": "ilm_ln"}, (SINGLE, HALF)),
    "ilm_in": (BATCH_LEVEL, {"to": "ilm_in"}, (SINGLE, BFLOAT16)),
    "moments": (EVERYTHING, {"init": "moments"}, (SINGLE,)),
    "bounded": (EVERYTHING, {"restore_bound": 2.0}, (SINGLE, HALF, BFLOAT16)),
    "other groups": (BATCH_LEVEL, {"key_group_size": 4, "num_groups": 2, "reduction": 1}, (SINGLE,)),
    "plain": (EVERYTHING, {"to": "gn", "init": "moments"}, (SINGLE,)),
}


@pytest.fixture(autouse=True, scope="module")
def device() -> Iterator[torch.device]:
    with pretend_device() as there:
        yield there


def network(*norms: nn.Module) -> nn.Sequential:
    """Norms, which a conversion doesn't run, behind a layer that says where the model is: some hold no tensor."""
    return randomize_norms(nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *copy.deepcopy(norms))).eval()


@pytest.mark.parametrize(("case", "dtype"), [(case, dtype) for case in CASES for dtype in CASES[case][2]], ids=str)
@pytest.mark.filterwarnings("ignore::ilmconvert.errors.PrecisionLost")
def test_the_values_are_those_of_the_cpu(case: str, dtype: torch.dtype) -> None:
    norms, settings, _ = CASES[case]
    source = network(*norms).to(dtype)
    expected, found = convert(source, **settings), convert(moved(source), **settings)
    same_there(found, expected)
    assert [type(m) for m in found.modules()] == [type(m) for m in expected.modules()]
    assert sum(config_of(m) is not None for m in found) == len(norms)


@pytest.mark.parametrize("settings", [{"to": "ilm_ln"}, {"num_groups": 5}], ids=str)
def test_what_is_refused_there_is_refused_for_the_same_reason(settings: dict[str, Any]) -> None:
    source = network(*EVERYTHING)
    with pytest.raises((ConversionError, ValueError)) as expected:
        convert(source, **settings)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        convert(moved(source), **settings)


@pytest.mark.parametrize("to", ["ilm_gn", "ilm_in"])
def test_what_is_lost_in_16_bits_is_told_there_too(to: str) -> None:
    source = network(nn.BatchNorm2d(CHANNELS)).half()
    source[1].running_mean[::2] = 3000
    told = []
    for model in (source, moved(source)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            convert(model, to)
        told.append([str(one.message) for one in caught])
    assert told[0] == told[1]
    assert bool(told[0]) == (to == "ilm_gn")


def test_an_example_there() -> None:
    source, x = small_network(), torch.randn(2, 3, 32, 32)
    same_there(convert(moved(source), example=x.to(DEVICE)), convert(source, example=x))


@pytest.mark.parametrize("trained", [False, True], ids=["as converted", "trained"])
@pytest.mark.parametrize("with_source", [False, True], ids=["alone", "with the source"])
def test_undone_there(trained: bool, with_source: bool) -> None:
    source = small_network()
    converted = convert(source)
    if trained:
        with torch.no_grad():
            for layer in converted.modules():
                if isinstance(layer, ILMNorm):
                    layer.bias.add_(0.25)
    expected = undo(converted, source if with_source else None)
    same_there(undo(moved(converted), moved(source) if with_source else None), expected)
    if with_source:
        same_there(undo(moved(converted), source), expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("way", ["ilm_gn", "moments", "plain"])
def test_state_dicts_of_the_source_load_there(way: str, assign: bool) -> None:
    source = small_network()
    expected = convert(source, **CASES[way][1])
    model = convert(moved(small_network(seed=1)), **CASES[way][1])
    with pytest.raises(AssertionError):
        same_there(model, expected)
    model.load_state_dict(moved(source).state_dict(), assign=assign)
    same_there(model, expected)


def test_a_state_dict_on_the_cpu_loads_there() -> None:
    source = small_network()
    model = convert(moved(small_network(seed=1)))
    model.load_state_dict(source.state_dict())
    same_there(model, convert(source))


def test_baselines_there() -> None:
    source = network(nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS, affine=False))
    for make in (group_norm_baseline, lambda model: baseline(model, "group-norm")):
        same_there(make(moved(source)), make(source))


class Scaled(nn.Module):
    """A BatchNorm that keeps tensors where ``Module.to`` doesn't look, and moves them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(CHANNELS))
        self.register_buffer("running_var", torch.ones(CHANNELS))
        self.scales = [{"one": torch.ones(CHANNELS)}]

    def forward(self, x: Tensor) -> Tensor:
        mean, var, scale = (t.view(-1, 1, 1) for t in (self.running_mean, self.running_var, self.scales[0]["one"]))
        return (x - mean) * (var + 1e-5).rsqrt() * scale


def test_a_norm_that_holds_tensors_in_containers_is_recognised_there() -> None:
    source = network(Scaled())
    there = moved(source)
    there[1].scales = [{"one": torch.ones(CHANNELS, device=DEVICE)}]
    same_there(convert(there), convert(source))
    assert there[1].scales[0]["one"].device == DEVICE


def test_telling_values_are_the_same_there() -> None:
    source = network(*EVERYTHING)
    same_there(randomize_norms(moved(source)), randomize_norms(copy.deepcopy(source)))
    same_there(wake_parameters(moved(source)), wake_parameters(copy.deepcopy(source)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.float32, {"restore_bound": 2.0}), (torch.float16, {}), (torch.bfloat16, {"restore_bound": 2.0})],
    ids=["bounded", "half", "bounded, bfloat16"],
)
@pytest.mark.filterwarnings("ignore::ilmconvert.errors.PrecisionLost")
def test_on_a_gpu_as_on_the_cpu(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    source = source_network().to(dtype)
    expected, found = (convert(model, **settings) for model in (source, copy.deepcopy(source).cuda()))
    assert {t.device.type for t in found.state_dict().values()} == {"cuda"}
    assert all(torch.equal(t.cpu(), expected.state_dict()[key]) for key, t in found.state_dict().items())
