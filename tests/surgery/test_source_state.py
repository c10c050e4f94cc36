"""State dicts of the source, loaded into its conversion, strict or not."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ilmconvert import ModelError, convert, load, load_weights, save
from tests.helpers import TOLERANCE, randomize_norms, relative_error, source_network

SOURCES: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(48),
    "eps": lambda: nn.BatchNorm2d(48, eps=0.5),
    "without gamma": lambda: nn.BatchNorm2d(48, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(48),
    "tracking InstanceNorm": lambda: nn.InstanceNorm2d(48, affine=True, track_running_stats=True),
    "BatchNormAct2d": lambda: BatchNormAct2d(48, act_layer=nn.PReLU),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(48, eps=0.0),
    "GroupNorm": lambda: nn.GroupNorm(6, 48),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(48, affine=True),
}


def network(norm: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return randomize_norms(nn.Sequential(nn.Conv2d(3, 48, 3), norm(), nn.ReLU(), nn.Conv2d(48, 4, 1)), seed=seed).eval()


def same_outputs(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("settings", [{}, {"to": "ilm_ln"}, {"to": "ilm_in"}, {"init": "moments"}, {"to": "gn"}])
@pytest.mark.parametrize("how", ["strict", "not strict", "assign"])
def test_the_values_are_converted_on_the_way_in(name: str, settings: dict[str, Any], how: str) -> None:
    mine, other = network(SOURCES[name], 1), network(SOURCES[name], 2)
    if name in ("GroupNorm", "InstanceNorm2d") and settings and settings != {"init": "moments"}:
        settings = {**settings, "init": "moments"}  # its groups would change
    model = convert(mine, **settings)
    model.load_state_dict(other.state_dict(), strict=how != "not strict", assign=how == "assign")
    x = torch.randn(2, 3, 9, 9)
    assert same_outputs(model, convert(other, **settings), x)
    if not settings:
        assert relative_error(model(x), other(x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("strict", [True, False])
def test_a_whole_network(tmp_path: Path, strict: bool) -> None:
    source = source_network()
    model = convert(randomize_norms(timm.create_model("test_resnet"), seed=5))
    model.load_state_dict(source.state_dict(), strict=strict)
    x = torch.randn(2, 3, 64, 64)
    assert same_outputs(model, convert(source), x)
    assert all(p.requires_grad for p in model.parameters())
    own, expected = model.state_dict(), convert(source).state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    assert same_outputs(load(save(model, tmp_path / "m.safetensors")), model, x)


def pickled(model: nn.Module, folder: Path) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    found: nn.Module = torch.load(buffer, weights_only=False)
    return found


@pytest.mark.parametrize(
    "again",
    [
        lambda model, folder: copy.deepcopy(model),
        pickled,
        lambda model, folder: load(save(model, folder / "m.safetensors"), into=network(SOURCES["eps"], 3)),
        lambda model, folder: load(save(model, folder / "m.safetensors"), into=copy.deepcopy(model)),
        lambda model, folder: convert(network(SOURCES["eps"], 3), inplace=True),
    ],
    ids=["copied", "pickled", "loaded", "loaded into a converted one", "in place"],
)
@pytest.mark.parametrize("to", ["ilm_gn", "gn"])
def test_layers_remember_their_source(tmp_path: Path, again: Any, to: str) -> None:
    source = network(SOURCES["eps"], 1)
    if to == "gn":
        model = again(convert(network(SOURCES["eps"], 2), to), tmp_path)
        to = "gn" if isinstance(model[1], nn.GroupNorm) else "ilm_gn"
    else:
        model = again(convert(network(SOURCES["eps"], 2)), tmp_path)
    model.load_state_dict(source.state_dict())
    assert same_outputs(model, convert(source, to), torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    source = network(SOURCES["BatchNorm2d"], 1)
    model = convert(network(SOURCES["BatchNorm2d"], 2).to(dtype))
    model.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert model(x.to(dtype)).dtype == dtype
    assert relative_error(model(x.to(dtype)).float(), source(x)) < max(TOLERANCE[dtype], TOLERANCE[torch.float32])


def test_its_own_state_dict_is_loaded_as_it_is() -> None:
    model, other = (convert(network(SOURCES["BatchNorm2d"], seed)) for seed in (1, 2))
    nn.init.normal_(other[1].weight_decoder)
    model.load_state_dict(other.state_dict())
    assert same_outputs(model, other, torch.randn(2, 3, 9, 9))
    part = {"1.weight": torch.full((48,), 3.0)}
    model.load_state_dict(part, strict=False)
    assert model[1].weight.eq(3).all()
    assert torch.equal(model[1].bias, other[1].bias)


def test_a_trained_layer_in_the_place_of_a_group_norm_asks_for_all_of_its_values() -> None:
    model = convert(network(SOURCES["GroupNorm"], 1))
    nn.init.normal_(model[1].weight_decoder)
    with pytest.raises(RuntimeError, match=r'Missing key.*"1\.encoder"'):
        model.load_state_dict(network(SOURCES["GroupNorm"], 2).state_dict())


def nan(state: dict[str, Tensor]) -> None:
    state["1.running_mean"][0] = float("nan")


def negative(state: dict[str, Tensor]) -> None:
    state["1.running_var"][0] = -1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "gives NaN or infinity: re-estimate its running statistics"),
        (negative, "gives NaN or infinity"),
        (lambda s: s.pop("1.running_var"), r"1 holds the values of a BatchNorm, but lacks running_var"),
        (lambda s: s.pop("1.weight"), "lacks weight"),
        (lambda s: s.update({"1.running_mean": torch.zeros(3)}), "of other than 48 channels"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_converted_is_refused(change: Any, message: str, strict: bool) -> None:
    model, state = convert(network(SOURCES["BatchNorm2d"], 1)), network(SOURCES["BatchNorm2d"], 2).state_dict()
    before = copy.deepcopy(model[1])
    change(state)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state, strict=strict)
    assert same_outputs(model[1], before, torch.randn(2, 48, 5, 5))


@pytest.mark.parametrize("strict", [True, False])
def test_a_batch_norms_values_for_what_was_a_group_norm(strict: bool) -> None:
    model = convert(network(SOURCES["GroupNorm"], 1))
    with pytest.raises(RuntimeError, match="replaced one without running statistics"):
        model.load_state_dict(network(SOURCES["BatchNorm2d"], 2).state_dict(), strict=strict)


def test_a_range_belongs_to_its_values() -> None:
    model = convert(network(SOURCES["BatchNorm2d"], 1))
    model[1].restore_range = (-1.0, 1.0, 2.0)
    with pytest.raises(RuntimeError, match="range was made for other values: load them into the source, convert it"):
        model.load_state_dict(network(SOURCES["BatchNorm2d"], 2).state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_weights_of_the_source_from_a_file(tmp_path: Path, prefix: str) -> None:
    source = source_network()
    torch.save({"state_dict": {prefix + key: t for key, t in source.state_dict().items()}}, tmp_path / "w.pth")
    model = convert(randomize_norms(timm.create_model("test_resnet"), seed=5))
    assert load_weights(model, tmp_path / "w.pth").prefix == prefix
    assert same_outputs(model, convert(source), torch.randn(2, 3, 64, 64))


def test_refused_weights_leave_a_converted_model_alone(tmp_path: Path) -> None:
    source = source_network()
    source.layer4[0].bn1.running_mean[0] = float("nan")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = convert(randomize_norms(timm.create_model("test_resnet")))
    before = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"layer4\.0\.bn1 holds the values of a BatchNorm, but gives NaN"):
        load_weights(model, tmp_path / "w.pth")
    assert same_outputs(model, before, torch.randn(2, 3, 64, 64))
