"""Layers that lose digits beside their sources are named, and no others."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.numerics import CASES, HALF_CASES, TARGETS, Statistics, batch_norm, sample, trained
from ilmconvert import convert, plan
from ilmconvert.errors import PrecisionLost
from ilmconvert.surgery.precision import is_stuck, lost_part
from ilmconvert.surgery.sources import describe_norm
from ilmconvert.testing import randomize_norms


def columns() -> tuple[Tensor, Tensor]:
    """A unix time and a rate, by turns."""
    return torch.tensor([1.6e9, 0.02]).repeat(32), torch.tensor([1e14, 1e-4]).repeat(32)


def part_of(statistics: Statistics, dtype: torch.dtype, to: str, bound: float | None = None) -> float:
    source = batch_norm(statistics, dtype)
    (entry,) = plan(source, to, restore_bound=bound)
    return lost_part(describe_norm(source), entry.target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF_CASES)
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.filterwarnings("ignore::ilmconvert.errors.PrecisionLost")
def test_what_is_lost_is_foreseen(dtype: torch.dtype, name: str, to: str) -> None:
    source = batch_norm(HALF_CASES[name], dtype)
    x = sample(source, dtype)
    exact = copy.deepcopy(source).double()
    usual = exact.bias.abs() + exact.weight.abs()
    wanted = exact(x.double())
    ours, own = (((y(x).double() - wanted).abs().amax((0, 2, 3)) / usual).max() for y in (convert(source, to), source))
    foreseen = part_of(HALF_CASES[name], dtype, to)
    if foreseen:
        assert foreseen / 4 < ours < 4 * foreseen
        assert ours > 4 * own
    else:
        assert ours < 12 * max(own, torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", [*CASES, "columns"])
def test_float32_loses_nothing_without_a_bound(name: str, to: str) -> None:
    statistics = columns() if name == "columns" else CASES[name]
    assert part_of(statistics, torch.float32, to) == 0


def test_a_bound_loses_what_one_channel_a_group_keeps() -> None:
    parts = [part_of(columns(), torch.float32, to, bound=8.0) for to in TARGETS]
    assert parts[0] > 1 < parts[1]
    assert parts[2] == 0


def mixed(dtype: torch.dtype) -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)).eval()
    randomize_norms(model)
    model[1].running_mean[::2] = 40
    model[2].running_mean[::2] = 3000
    return model.to(dtype)


def test_the_warning_names_the_worst_layer() -> None:
    with pytest.warns(PrecisionLost, match=r"^2 and 1 more layer lose digits.*16-bit.*float32.*ilm_in"):
        convert(mixed(torch.bfloat16), "ilm_ln")
    with pytest.warns(PrecisionLost, match=r"^the root loses digits"):
        convert(mixed(torch.float16)[2], "ilm_ln")


def test_each_cure_cures() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(mixed(torch.float32), "ilm_ln")
        convert(mixed(torch.bfloat16), "ilm_in")
        convert(mixed(torch.bfloat16), "ilm_ln", init="moments")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("to", TARGETS)
def test_usual_networks_are_converted_without_a_word(dtype: torch.dtype, to: str) -> None:
    model = randomize_norms(timm.create_model("test_resnet").eval()).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, to)


@pytest.mark.filterwarnings("ignore::ilmconvert.errors.PrecisionLost")
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", ["as usual", "mean 1e6 in some channels", "a unix time beside a rate"])
def test_scales_that_no_step_moves_are_foreseen(name: str, to: str) -> None:
    source = batch_norm(CASES[name], torch.float32)
    (entry,) = plan(source, to)
    assert is_stuck(describe_norm(source), entry.target) == (trained(CASES[name], to).moved < 1)


def test_layers_that_cannot_be_trained_well_are_named() -> None:
    model = mixed(torch.float32)
    model[1].running_mean[::2] = 1e9
    with pytest.warns(PrecisionLost, match=r"^1 loses nothing as converted, but can't be trained well: .*ilm_in"):
        convert(model, "ilm_ln")
