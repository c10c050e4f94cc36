"""The way back from a conversion: plain norms where the layers equal one, a refusal that names the layer elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import ilmconvert
from ilmconvert import ConversionError, ILMNorm, convert, undo
from ilmconvert.models.create import create_model
from tests.helpers import TOLERANCE, randomize_norms, relative_error, source_network

C = 32
X = torch.randn(2, C, 5, 6, generator=torch.Generator().manual_seed(1))

NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.BatchNorm2d(C, eps=1e-3),
    "BatchNorm without gamma": lambda: nn.BatchNorm2d(C, affine=False),
    "FrozenBatchNorm": lambda: torchvision.ops.FrozenBatchNorm2d(C),
    "BatchNormAct": lambda: timm.layers.BatchNormAct2d(C, act_layer=nn.SiLU),
    "GroupNorm": lambda: nn.GroupNorm(8, C),
    "GroupNormAct": lambda: timm.layers.GroupNormAct(C, 8),
    "InstanceNorm": lambda: nn.InstanceNorm2d(C, affine=True),
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(nn.Sequential(nn.Conv2d(C, C, 1), make(), nn.Conv2d(C, C, 1))).eval()


CASES = [(kind, to) for kind in NORMS for to in ("ilm_gn", "ilm_ln", "ilm_in") if "Batch" in kind or to == "ilm_gn"]


@pytest.mark.parametrize("with_source", [False, True], ids=["stock", "source"])
@pytest.mark.parametrize(("kind", "to"), CASES)
def test_every_kind_of_norm_comes_back(kind: str, to: str, with_source: bool) -> None:
    source = network(NORMS[kind])
    converted = convert(source, to)
    assert isinstance(converted[1], ILMNorm)
    before = {name: t.clone() for name, t in converted.state_dict().items()}
    back = undo(converted, network(NORMS[kind]) if with_source else None)
    assert not any(isinstance(m, ILMNorm) for m in back.modules())
    if with_source:
        assert type(back[1]) is type(source[1])
        assert back.state_dict().keys() == source.state_dict().keys()
    assert relative_error(back(X), source(X)) <= TOLERANCE[torch.float32]
    assert all(torch.equal(before[name], t) for name, t in converted.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_trained_network_of_timm_comes_back_under_its_own_names(dtype: torch.dtype) -> None:
    source = randomize_norms(create_model("test_resnet", weights="none"), scale=0.5).eval().to(dtype)
    converted = convert(source)
    with torch.no_grad():
        converted.fc.weight.mul_(3)
    back = undo(converted)
    assert type(back.bn1) is type(source.bn1)
    stock = timm.create_model("test_resnet").eval().to(dtype)
    stock.load_state_dict(back.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    assert relative_error(stock(x), converted(x)) <= TOLERANCE[dtype]
    assert relative_error(stock(x), source(x)) > 10 * TOLERANCE[dtype]
    assert ilmconvert.info(back).settings == {}
    assert ilmconvert.info(back).spec == ilmconvert.info(source).spec


def test_what_hangs_on_a_layer_comes_along() -> None:
    converted = convert(network(NORMS["BatchNorm"])).double().train()
    converted[1].lr_mult = 0.5
    converted[1].weight.requires_grad_(False)
    converted[1].register_forward_hook(lambda module, args, result: result + 1)
    converted.others = [converted[1]]
    back = undo(converted)
    norm = back[1]
    assert (norm.training, norm.lr_mult, norm.weight.requires_grad, norm.bias.requires_grad) == (True, 0.5, False, True)
    assert norm.weight.dtype == torch.float64
    assert back.others == [norm]
    back.eval()
    converted.eval()
    assert relative_error(back(X.double()), converted(X.double())) <= TOLERANCE[torch.float64]


def change_decoder(layer: ILMNorm) -> None:
    layer.weight_decoder.data[0] += 0.1


def change_path(layer: ILMNorm) -> None:
    assert layer.restore_weight is not None
    layer.restore_weight.data[0] *= 1.01


def change_gamma(layer: ILMNorm) -> None:
    assert layer.weight is not None
    layer.weight.data *= 1.01


CHANGES = {
    "its meta-network isn't zero": change_decoder,
    "its restoring path isn't the identity any more": change_path,
    "trained or annealed": change_gamma,
}


@pytest.mark.parametrize("why", CHANGES)
def test_a_layer_that_equals_no_norm_is_named(why: str) -> None:
    source = source_network("test_resnet", scale=0.5)
    converted = convert(source)
    name, layer = next((n, m) for n, m in converted.named_modules() if isinstance(m, ILMNorm))
    CHANGES[why](layer)
    with pytest.raises(ConversionError, match=rf"^1 of 15 layers equal no plain norm any more, first {name}: .*{why}"):
        undo(converted)
    with pytest.warns(UserWarning, match="they stay"):
        back = undo(converted, partial=True)
    assert [n for n, m in back.named_modules() if isinstance(m, ILMNorm)] == [name]
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(back(x), converted(x)) <= TOLERANCE[torch.float32]
    assert ilmconvert.info(back).to == "ilm_gn"


def test_what_cannot_be_undone() -> None:
    with pytest.raises(ConversionError, match="holds no ILM Norm"):
        undo(network(NORMS["BatchNorm"]))
    with pytest.raises(ConversionError, match="has a bound or a range"):
        undo(convert(network(NORMS["BatchNorm"]), restore_bound=2.0))
    with pytest.raises(ConversionError, match="no way back"):
        undo(convert(network(NORMS["BatchNorm"]), init="moments"))
    converted = convert(network(NORMS["BatchNorm"]))
    with pytest.raises(ConversionError, match=r"the source has Conv2d at 1, not a norm of 32 channels"):
        undo(converted, nn.Sequential(nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)))
    with pytest.raises(ConversionError, match="converted from another kind of norm"):
        undo(converted, network(NORMS["GroupNorm"]))
    without = convert(network(NORMS["BatchNorm without gamma"]))
    with torch.no_grad():
        for t in (without[1].weight, without[1].restore_weight, without[1].restore_bias):
            t.neg_()
    with pytest.raises(ConversionError, match="no gamma and beta"):
        undo(without, network(NORMS["BatchNorm without gamma"]))


def test_large_means_and_small_variances() -> None:
    source = network(NORMS["BatchNorm"])
    source[1].running_mean += 300
    source[1].running_var *= 1e-6
    converted = convert(source)
    x = X * 1e-3 + 300
    inside = [nn.Sequential(m[1]) for m in (source, converted, undo(converted))]
    expected, found, back = (m.double()(x.double()) for m in map(copy.deepcopy, inside))
    assert relative_error(found, expected) <= 1e-4
    assert relative_error(back, found) <= 1e-4


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from tests.cli.commands import fails, run

    monkeypatch.chdir(tmp_path)
    source = randomize_norms(create_model("test_resnet", weights="none"), scale=0.5).eval()
    ilmconvert.save(convert(source), "c.safetensors")
    result = run("undo", "c.safetensors")
    assert "15 layers are plain norms again; error against c.safetensors: " in result.stdout
    assert "Wrote c-source.safetensors; weights of timm/test_resnet" in result.stdout
    stock = timm.create_model("test_resnet", checkpoint_path="c-source.safetensors").eval()
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(stock(x), source(x)) <= TOLERANCE[torch.float32]
    assert "exists" in fails("undo", "c.safetensors")

    changed = convert(source)
    change_decoder(changed.bn1 if isinstance(changed.bn1, ILMNorm) else changed.conv1[1])
    ilmconvert.save(changed, "d.safetensors")
    assert "--partial" in fails("undo", "d.safetensors")
    assert "1 layers stay converted" in run("undo", "d.safetensors", "--partial", "-o", "e.safetensors").stdout
    assert relative_error(ilmconvert.load("e.safetensors")(x), changed(x)) <= TOLERANCE[torch.float32]
