"""A file that loads by itself, and the one line that says why it doesn't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

import ilmconvert
from ilmconvert import CheckpointError, ILMNorm, convert, load, save
from ilmconvert.checkpoint.save_load import read_header
from ilmconvert.models.create import ModelSpec, create_model
from tests.helpers import randomize_norms


def converted(name: str = "test_resnet", to: str = "ilm_gn", **model_args: Any) -> nn.Module:
    return convert(randomize_norms(create_model(name, weights="none", **model_args)), to)


def custom(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())


def damage(path: Path, change: Any) -> Path:
    """Rewrite the file with its tensors and record changed by ``change(tensors, record)``."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    tensors, record = load_file(path), json.loads(metadata["ilmconvert"])
    change(tensors, record)
    save_file(tensors, path, metadata={**metadata, "ilmconvert": json.dumps(record)})
    return path


@pytest.mark.parametrize(
    ("name", "to", "model_args"),
    [
        ("test_resnet", "ilm_gn", {}),
        ("test_resnet.r160_in1k", "ilm_ln", {"num_classes": 7, "in_chans": 1}),
        ("test_efficientnet", "ilm_in", {"num_classes": 0}),
        ("test_efficientnet_gn", "ilm_gn", {}),
        ("levit_128s", "ilm_gn", {}),
        ("torchvision/mobilenet_v2", "ilm_gn", {"num_classes": 5}),
        ("torchvision/googlenet", "ilm_ln", {"init_weights": False}),
    ],
)
def test_round_trip_is_bit_for_bit(tmp_path: Path, name: str, to: str, model_args: dict[str, Any]) -> None:
    model = converted(name, to, **model_args)
    path = save(model, tmp_path / "m.safetensors")
    loaded = load(path)
    assert not loaded.training
    assert type(loaded) is type(model)
    size = 224 if "levit" in name or "googlenet" in name else 64
    x = torch.randn(2, model_args.get("in_chans", 3), size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    assert {k: (v.dtype, v.shape) for k, v in loaded.state_dict().items()} == {
        k: (v.dtype, v.shape) for k, v in model.state_dict().items()
    }
    again = save(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_timms_own_factory_is_recognised(tmp_path: Path) -> None:
    model = convert(randomize_norms(timm.create_model("test_resnet", num_classes=3, in_chans=2)))
    loaded = load(save(model, tmp_path / "m.safetensors"))
    x = torch.randn(2, 2, 64, 64)
    assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.pretrained_cfg["architecture"] == "test_resnet"


def test_a_new_head_is_recognised(tmp_path: Path) -> None:
    model = converted()
    model.reset_classifier(4)
    path = save(model, tmp_path / "m.safetensors")
    assert read_header(path)["spec"]["model_args"] == {"num_classes": 4}
    assert load(path)(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_a_model_changed_beyond_its_name_is_not_passed_off_as_it(tmp_path: Path) -> None:
    model = converted()
    model.act1 = nn.SiLU()
    with pytest.warns(UserWarning, match=r"act1 is SiLU\(.*\), not ReLU"):
        path = save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="into=model"):
        load(path)
    with pytest.raises(CheckpointError, match="with these arguments isn't the model: act1"):
        save(model, tmp_path / "n.safetensors", spec=ModelSpec("timm", "test_resnet"))
    assert not (tmp_path / "n.safetensors").exists()


def test_a_spec_for_a_model_that_does_not_tell(tmp_path: Path) -> None:
    model = convert(randomize_norms(torchvision.models.resnet18(weights=None)))
    path = save(model, tmp_path / "m.safetensors", spec=ModelSpec("torchvision", "resnet18"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(path)(x), model.eval()(x))


def test_custom_model_goes_into_its_own_class(tmp_path: Path) -> None:
    model = convert(randomize_norms(custom()))
    path = save(model, tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(CheckpointError, match="holds a custom model"):
        load(path)
    for target in (custom(), convert(randomize_norms(custom(), seed=5))):
        loaded = load(path, into=target)
        assert loaded is target
        assert torch.equal(loaded(x), model.eval()(x))


def test_root_norm(tmp_path: Path) -> None:
    model = convert(randomize_norms(nn.BatchNorm2d(8)))
    loaded = load(save(model, tmp_path / "m.safetensors"), into=nn.BatchNorm2d(8))
    assert isinstance(loaded, ILMNorm)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "wrong", [custom(9), nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ReLU())]
)
def test_into_another_model_fails_and_leaves_it_alone(tmp_path: Path, wrong: nn.Module) -> None:
    path = save(convert(randomize_norms(custom())), tmp_path / "m.safetensors")
    before, state = str(wrong), {k: v.clone() for k, v in wrong.state_dict().items()}
    with pytest.raises(CheckpointError, match="pass the model that was saved"):
        load(path, into=wrong)
    assert str(wrong) == before
    assert all(torch.equal(v, state[k]) for k, v in wrong.state_dict().items())


class Tied(nn.Module):
    """A weight under two names and a norm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight
        self.again = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.norm(self.first(x))))


def test_tied_tensors_and_shared_modules_stay_tied(tmp_path: Path) -> None:
    model = convert(randomize_norms(Tied()))
    path = save(model, tmp_path / "m.safetensors")
    assert set(read_header(path)["aliases"]) >= {"second.weight", "again.weight"}
    loaded = load(path, into=Tied())
    assert loaded.first.weight is loaded.second.weight
    assert loaded.norm is loaded.again
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(loaded(x), model.eval()(x))


def test_types_and_views_survive(tmp_path: Path) -> None:
    model = converted().half().to(memory_format=torch.channels_last)
    loaded = load(save(model, tmp_path / "m.safetensors"))
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float16}
    module = convert(randomize_norms(custom()))
    storage = torch.randn(4)
    module.register_buffer("left", storage[:3])
    module.register_buffer("right", storage[1:])
    target = custom()
    target.register_buffer("left", torch.zeros(3))
    target.register_buffer("right", torch.zeros(3))
    loaded = load(save(module, tmp_path / "v.safetensors"), into=target)
    assert torch.equal(loaded.left, storage[:3])
    assert torch.equal(loaded.right, storage[1:])


def test_header_tells_what_the_file_holds(tmp_path: Path) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none")), "ilm_ln", init="moments")
    path = save(model, tmp_path / "m.safetensors", provenance={"weights": "mine"})
    header = read_header(path)
    assert header["settings"] == {"to": "ilm_ln", "init": "moments"}
    assert header["provenance"] == {"weights": "mine"}
    assert header["ilmconvert"] == ilmconvert.__version__
    assert len(header["layers"]) == 15
    state = load_file(path)
    assert header["tensors"] == {"count": len(state), "bytes": sum(t.nbytes for t in state.values())}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        assert f.metadata()["format"] == "pt"


def test_stock_readers_accept_the_file(tmp_path: Path) -> None:
    model = converted()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    state = load_file(save(model, tmp_path / "m.safetensors"))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t, r: r.update(format_version=3), "format 3 is newer than this ilmconvert's 2; upgrade"),
        (lambda t, r: r.update(standardized_input={"layer": "conv1.0"}), "standardisation of the input is damaged"),
        (lambda t, r: r.update(standardized_input={"layer": "x", "std": 1}), "no layer 'x', before which"),
        (lambda t, r: r.pop("format_version"), "names no format version"),
        (lambda t, r: r.pop("layers"), "damaged at layers"),
        (lambda t, r: r.update(spec=3), "damaged at spec"),
        (lambda t, r: r.update(aliases={"a": 1}), "damaged at aliases"),
        (lambda t, r: r.update(aliases={"a": "b"}), "tensor 'b', of which 'a' is a second name, is missing"),
        (lambda t, r: r["layers"].append({"name": 3}), "damaged at layer"),
        (lambda t, r: r["layers"][0].update(name="nowhere"), "no module 'nowhere'"),
        (lambda t, r: r["layers"][0].update(name="layer1.0.conv1"), "'layer1.0.conv1' is a Conv2d"),
        (lambda t, r: r["layers"][0]["config"].update(num_channels=10**12), "channels, not 1000000000000"),
        (lambda t, r: r["layers"][0]["config"].update(num_groups=7), "num_groups=7 doesn't divide"),
        (lambda t, r: r["layers"][0]["config"].update(eps="x"), "settings of 'conv1.1' are damaged"),
        (lambda t, r: r["layers"][0]["config"].update(evil="x"), "damaged at layer"),
        (lambda t, r: r["spec"].update(architecture="resnet51"), "unknown model"),
        (lambda t, r: r["spec"].update(library="os"), "unknown model library"),
        (lambda t, r: r["spec"].update(model_args={"no_such_argument": 1}), "can't build test_resnet"),
        (lambda t, r: r["spec"].update(model_args={"checkpoint_path": "/etc/hostname"}), "checkpoint_path can't be"),
        (lambda t, r: r["spec"].update(model_args={"pretrained": True}), "pretrained can't be"),
        (lambda t, r: t.pop("fc.bias"), "1 missing, first 'fc.bias'"),
        (lambda t, r: t.update(more=torch.ones(1)), "1 left over, first 'more'"),
        (lambda t, r: t.update({"fc.bias": torch.ones(3)}), r"'fc.bias' has shape \(3,\), the model \(1000,\)"),
    ],
)
def test_damage_has_a_name(tmp_path: Path, change: Any, match: str) -> None:
    path = damage(save(converted(), tmp_path / "m.safetensors"), change)
    with pytest.raises(CheckpointError, match=match) as info:
        load(path)
    assert "\n" not in str(info.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    whole = save(converted(), tmp_path / "m.safetensors").read_bytes()
    cases = {
        "truncated": (whole[:-100], "truncated, damaged or of another kind"),
        "header only": (whole[:64], "truncated, damaged or of another kind"),
        "empty": (b"", "truncated, damaged or of another kind"),
        "text": (b"hello world, this is text", "truncated, damaged or of another kind"),
    }
    for name, (content, match) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match):
            load(path)
        with pytest.raises(CheckpointError, match=match):
            read_header(path)
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(1)}, plain)
    with pytest.raises(CheckpointError, match="wasn't written by ilmconvert"):
        load(plain)
    pickled = tmp_path / "m.pth"
    torch.save({"a": torch.ones(1)}, pickled)
    with pytest.raises(CheckpointError, match="of another kind"):
        load(pickled)
    with pytest.raises(CheckpointError, match="doesn't exist"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no ILM Norm layer"):
        save(custom(), tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = convert(custom())
    with pytest.raises(CheckpointError, match="meta device"):
        save(empty, tmp_path / "m.safetensors")
    model = convert(randomize_norms(custom()))
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(model, tmp_path / "no" / "m.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        save(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(converted(), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; choose another place"):
        save(converted(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_umask_decides_who_reads(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    path = save(convert(randomize_norms(custom())), tmp_path / "m.safetensors")
    assert path.stat().st_mode == plain.stat().st_mode


def test_same_model_same_bytes(tmp_path: Path) -> None:
    """Also from two processes: the library's own order of the metadata changes from one to the next."""
    code = (
        "import sys, torch; from ilmconvert import convert, save; torch.manual_seed(0)\n"
        "save(convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8))), sys.argv[1])"
    )
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file in files:
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(file)], check=True)
    assert len({file.read_bytes() for file in files}) == 1


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = save(converted(), tmp_path / "m.safetensors")
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_without_numbers_of_their_own_are_refused(tmp_path: Path) -> None:
    """Quantised and sharded tensors are wrappers around others."""
    from torch.testing._internal.two_tensor import TwoTensor

    model = convert(randomize_norms(timm.create_model("test_resnet")))
    model.fc.weight = nn.Parameter(TwoTensor(torch.zeros(3), torch.zeros(3)), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"fc.weight is a TwoTensor.*before it is quantised or sharded"):
        save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
