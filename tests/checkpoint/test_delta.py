"""A delta and the base make the converted network, bit for bit; another base is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ilmconvert import CheckpointError, apply_delta, convert, load, save, save_delta
from ilmconvert.checkpoint.delta import DELTA_KEY, read_delta
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.models.create import create_model
from tests.helpers import randomize_norms


def base_of(name: str = "test_resnet", **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(create_model(name, weights="none", **args)).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours
    )


@pytest.mark.parametrize(
    ("name", "to"),
    [("test_resnet", "ilm_gn"), ("test_resnet", "gn"), ("test_byobnet", "ilm_in"), ("test_efficientnet", "ilm_ln")],
)
def test_bit_for_bit(tmp_path: Path, name: str, to: str) -> None:
    base = base_of(name)
    model = convert(base, to)
    file = save_delta(model, tmp_path / "d.safetensors", base=base)
    before = {key: t.clone() for key, t in base.state_dict().items()}
    again = apply_delta(base, file)
    whole = save(model, tmp_path / "whole.safetensors")
    assert same(again, load(whole))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))
    assert save(again, tmp_path / "again.safetensors").read_bytes() == whole.read_bytes()
    assert not {t.data_ptr() for t in again.state_dict().values() if t.numel()} & {
        t.data_ptr() for t in base.state_dict().values()
    }
    assert all(torch.equal(before[key], t) for key, t in base.state_dict().items())
    _, tensors = read_delta(file)
    assert not any(key.endswith("conv1.weight") or key.startswith("fc.") for key in tensors)
    assert save_delta(model, tmp_path / "e.safetensors", base=base).read_bytes() == file.read_bytes()


def test_what_training_changed_is_in_it(tmp_path: Path) -> None:
    base = base_of()
    model = convert(base)
    model.reset_classifier(5)
    with torch.no_grad():
        model.get_submodule("layer2.0.conv1").weight.add_(0.5)
        model.get_submodule("layer1.0.conv1").weight[0, 0, 0, 0] = float("nan")
        model.get_submodule("layer1.0.bn1").weight_decoder.normal_()
    file = save_delta(model, tmp_path / "d.safetensors", base=base)
    _, tensors = read_delta(file)
    others = {k for k in tensors if "bn" not in k and "downsample" not in k and k.split(".")[0] != "conv1"}
    assert others == {"fc.weight", "fc.bias", "layer2.0.conv1.weight", "layer1.0.conv1.weight"}
    again = apply_delta(base, file)
    assert {k: t.nan_to_num(7).tolist() for k, t in again.state_dict().items()} == {
        k: t.nan_to_num(7).tolist() for k, t in model.state_dict().items()
    }


def test_a_head_that_was_taken_off(tmp_path: Path) -> None:
    base = base_of()
    model = convert(base)
    model.reset_classifier(0)
    again = apply_delta(base, save_delta(model, tmp_path / "d.safetensors", base=base))
    assert same(again, model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight
        self.again = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.norm(self.first(x))))


def test_models_of_no_zoo(tmp_path: Path) -> None:
    base = randomize_norms(Tied()).eval()
    model = convert(base)
    again = apply_delta(base, save_delta(model, tmp_path / "d.safetensors", base=base))
    assert isinstance(again, Tied)
    assert again.first.weight is again.second.weight
    assert again.norm is again.again
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(again(x), model(x))
    assert isinstance(base.norm, nn.BatchNorm2d)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.fc.weight.data[0].add_(1e-7),
        lambda m: m.get_submodule("layer1.0.bn1").running_mean.mul_(-1),
        lambda m: m.half(),
        lambda m: m.register_buffer("more", torch.zeros(1)),
        lambda m: m.reset_classifier(10),
    ],
)
def test_another_base_is_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    base = base_of()
    file = save_delta(convert(base), tmp_path / "d.safetensors", base=base)
    other = base_of()
    assert same(apply_delta(other, file), convert(base))
    with torch.no_grad():
        change(other)
    with pytest.raises(CheckpointError, match=r"for another base \(timm test_resnet\.r160_in1k\)") as caught:
        apply_delta(other, file)
    assert "\n" not in str(caught.value)


def test_counters_do_not_matter(tmp_path: Path) -> None:
    base = base_of()
    file = save_delta(convert(base), tmp_path / "d.safetensors", base=base)
    for key, t in base.state_dict().items():
        if key.endswith("num_batches_tracked"):
            t.add_(5)
    assert same(apply_delta(base, file), convert(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: d.update(format_version=2), "delta format 2 isn't known"),
        (lambda t, d: d.pop("sha256"), "damaged"),
        (lambda t, d: d.update(without="all"), "damaged"),
        (lambda t, d: d.update(record=None), "names no format version"),
        (lambda t, d: d["record"]["spec"].update(library="os"), "unknown model library"),
        (lambda t, d: d["record"]["layers"][0]["config"].update(num_channels=10**12), "channels, not 1000000000000"),
        (lambda t, d: d.update(base={"library": "os"}), "library, architecture"),
        (lambda t, d: d["without"].append("fc.bias"), "1 missing, first 'fc.bias'"),
        (lambda t, d: t.pop("layer1.0.bn1.ref_std"), "1 missing, first 'layer1.0.bn1.ref_std'"),
        (lambda t, d: t.update(more=torch.ones(1)), "1 left over, first 'more'"),
    ],
)
def test_damage_has_a_name(tmp_path: Path, change: Callable[[Any, Any], Any], message: str) -> None:
    base = base_of()
    file = save_delta(convert(base), tmp_path / "d.safetensors", base=base)
    with safe_open(file, framework="pt") as f:
        data = json.loads(f.metadata()[DELTA_KEY])
    tensors = load_file(file)
    change(tensors, data)
    save_file(tensors, file, metadata={"format": "pt", DELTA_KEY: json.dumps(data)})
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_delta(base, file)
    assert "\n" not in str(caught.value)


def test_deltas_and_checkpoints_are_told_apart(tmp_path: Path) -> None:
    base = base_of()
    file = save_delta(convert(base), tmp_path / "d.safetensors", base=base)
    with pytest.raises(CheckpointError, match=r"is a delta: .*apply_delta"):
        load(file)
    with pytest.raises(CheckpointError, match="isn't a delta; a whole checkpoint is used as it is"):
        apply_delta(base, save(convert(base), tmp_path / "m.safetensors"))
    with pytest.raises(CheckpointError, match="holds no ILM Norm"):
        save_delta(base, tmp_path / "x.safetensors", base=base)
    assert not (tmp_path / "x.safetensors").exists()


def test_the_real_network(tmp_path: Path) -> None:
    base = load_lite0()
    model = convert(base)
    whole, delta = save(model, tmp_path / "w.safetensors"), save_delta(model, tmp_path / "d.safetensors", base=base)
    again = apply_delta(base, delta)
    assert same(again, load(whole))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert delta.stat().st_size < 0.05 * whole.stat().st_size
    with pytest.raises(CheckpointError, match=r"another base \(timm tf_efficientnet_lite0"):
        apply_delta(timm.create_model("tf_efficientnet_lite0"), delta)
