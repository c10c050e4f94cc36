"""Models by name, their specs, and weights from files, folders and caches."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from packaging.version import Version
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import ilmconvert
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import ModelError
from ilmconvert.models import torchvision_zoo
from ilmconvert.models.create import ModelSpec, create_model, infer_spec, list_models, parse_name
from ilmconvert.models.norm_counts import count_norms, stored_counts
from ilmconvert.models.skip_init import skip_init
from tests.helpers import randomize_norms
from tests.models.training_files import tiny

# Earlier versions don't note a model's arguments on it, so that it has to be given where it is loaded again.
newest_timm = pytest.mark.skipif(Version(timm.__version__) < Version("1.0.31"), reason="of timm 1.0.31 and later")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- names and specs ---


@pytest.mark.parametrize(
    ("name", "library", "architecture"),
    [
        ("resnet50", "timm", "resnet50.a1_in1k"),
        ("timm/resnet50", "timm", "resnet50.a1_in1k"),
        ("resnet50.tv_in1k", "timm", "resnet50.tv_in1k"),
        ("torchvision/resnet50", "torchvision", "resnet50"),
        ("fasterrcnn_resnet50_fpn", "torchvision", "fasterrcnn_resnet50_fpn"),
        ("vit_base_patch16_224_in21k", "timm", "vit_base_patch16_224.augreg_in21k"),  # a name of old
    ],
)
def test_names(name: str, library: str, architecture: str) -> None:
    assert parse_name(name) == ModelSpec(library, architecture)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5o", "did you mean resnet50"),
        ("torchvision/resnet5", "did you mean resnet50"),
        ("resnet50.a1_in2k", "resnet50.a1_in1k"),
        ("zzqqxx", "ilmconvert list"),
        ("someone/model", "hf-hub:someone/model"),
        *((path, f"no file or folder {path}, nor a model") for path in ("run/baselines/frozen-bn", "./run", "/no/run")),
        ("s3:model", "hf-hub: or local-dir:"),
        ("missing.safetensors", "missing.safetensors doesn't exist; check the path"),
        ("runs/last.pth", "runs/last.pth doesn't exist; check the path"),
        ("hf-hub:", "lacks the model"),
        ("local-dir:/no/such/folder", "no/such/folder"),
        ("", "unknown model"),
        ("torchvision/quantized_resnet50", "unknown model"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parse_name(name)
    assert "\n" not in str(caught.value)


def test_spec_survives_json() -> None:
    spec = ModelSpec("timm", "test_vit.r160_in1k", {"img_size": (128, 128), "num_classes": 7})
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.model_args == {"img_size": [128, 128], "num_classes": 7}
    assert again.build()(torch.zeros(1, 3, 128, 128)).shape == (1, 7)
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "library, architecture"),
        ({"library": "keras", "architecture": "resnet50"}, "unknown model library"),
        ({"library": "timm", "architecture": "resnet5o"}, "resnet50"),
        ({"library": "timm", "architecture": ["x"]}, "unknown model"),
        ({"library": "timm", "architecture": "resnet50", "model_args": [1]}, "JSON object"),
        ({"library": "timm", "architecture": "resnet50", "model_args": {"a": nn.ReLU}}, "JSON values"),
    ],
)
def test_bad_spec(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize("args", [{"nonsense": 1}, {"num_classes": "many"}])
@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18"])
def test_refused_arguments(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"can't build .*{next(iter(args))}="):
        create_model(name, weights="none", **args)


def test_list() -> None:
    names = list_models()
    assert "resnet50" in names
    assert "torchvision/resnet50" in names
    assert not [name for name in names if "quantized" in name]
    assert set(list_models("vgg11*")) == {"vgg11", "vgg11_bn", "torchvision/vgg11", "torchvision/vgg11_bn"}
    assert all(name.startswith("torchvision/") for name in list_models("torchvision/*"))


def test_stored_counts_are_what_counting_gives() -> None:
    stored = stored_counts()
    for name in ("test_efficientnet", "test_vit", "levit_128s", "torchvision/regnet_x_400mf", "torchvision/raft_small"):
        assert stored[name] == count_norms(name)
    assert sum(count > 0 for count in stored.values()) > 800


# --- building ---


def test_create_model_carries_spec_and_provenance() -> None:
    model = create_model("test_resnet", weights="none", num_classes=10, in_chans=1)
    assert not model.training
    assert ilmconvert.info(model).spec == ModelSpec("timm", "test_resnet.r160_in1k", {"num_classes": 10, "in_chans": 1})
    assert ilmconvert.info(model).provenance == {"weights": "none"}
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    "name",
    ["test_vit", pytest.param("test_maxvit", marks=newest_timm), "levit_128s", "torchvision/shufflenet_v2_x0_5"],
)
def test_skipping_the_initialisation_keeps_every_buffer(name: str) -> None:
    spec = parse_name(name)
    plain, quick = spec.build(), spec.build(initialize=False)
    expected, found = dict(plain.named_buffers()), dict(quick.named_buffers())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_skipping_the_initialisation_needs_only_a_state_dict() -> None:
    spec = parse_name("test_vit")
    plain, quick = spec.build(), spec.build(initialize=False)
    quick.load_state_dict(plain.state_dict())
    (x,) = example_inputs(plain, batch_size=1)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), quick.eval()(x))


def test_skip_init_leaves_other_random_numbers_alone() -> None:
    with skip_init():
        filled = torch.empty(1000).normal_()
        state = torch.get_rng_state()
        nn.Linear(100, 100)
        assert torch.equal(state, torch.get_rng_state())
    assert 0.8 < filled.std() < 1.2


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {}),
        ("test_resnet.r160_in1k", {"num_classes": 10}),
        pytest.param("test_vit", {"img_size": 96, "in_chans": 1}, marks=newest_timm),
        pytest.param("test_efficientnet", {"features_only": True}, marks=newest_timm),
    ],
)
def test_infer_spec_rebuilds_plain_timm_models(name: str, args: dict[str, Any]) -> None:
    model = timm.create_model(name, **args)
    spec = infer_spec(model)
    assert spec is not None
    rebuilt = spec.build()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in rebuilt.state_dict().items()}
    assert repr(rebuilt) == repr(model)


def test_infer_spec_sees_a_new_head() -> None:
    model = timm.create_model("test_resnet")
    model.reset_classifier(5)
    spec = infer_spec(model)
    assert spec is not None
    assert spec.model_args == {"num_classes": 5}


@newest_timm
def test_infer_spec_gives_up() -> None:
    assert infer_spec(nn.Linear(2, 2)) is None
    assert infer_spec(torchvision.models.resnet18()) is None
    assert infer_spec(timm.create_model("test_resnet", act_layer=nn.SiLU)) is None


# --- default weights ---


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18"])
def test_default_weights_without_network(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ModelError, match=r"no network .*--weights FILE.*--weights none"):
        create_model(name)


def test_no_default_weights() -> None:
    with pytest.raises(ModelError, match=r"no default weights of ghostnet_050.*--weights none"):
        create_model("ghostnet_050")


def fill_hub_cache(cache: Path, repository: str, model: nn.Module) -> None:
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    timm.models.save_for_hf(model, snapshot, safe_serialization=True)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["test_resnet", "hf-hub:timm/test_resnet.r160_in1k"])
def test_cached_default_weights_need_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tiny()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fill_hub_cache(tmp_path, "timm/test_resnet.r160_in1k", published)
    model = create_model(name)
    assert same_state(model, published)
    assert ilmconvert.info(model).provenance["weights"] == "default"
    assert ilmconvert.info(model).provenance["hf_hub_id"] == "timm/test_resnet.r160_in1k"
    assert ilmconvert.info(model).spec.architecture.startswith("test_resnet")


def test_local_folder(tmp_path: Path) -> None:
    published = tiny(num_classes=7, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    timm.models.save_for_hf(published, tmp_path / "mine", safe_serialization=True)
    model = create_model(f"local-dir:{tmp_path / 'mine'}")
    assert same_state(model, published)
    rebuilt = ModelSpec.from_dict(json.loads(json.dumps(ilmconvert.info(model).spec.to_dict()))).build()
    assert rebuilt.fc.weight.shape == published.fc.weight.shape
    assert tuple(rebuilt.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert str(tmp_path) not in json.dumps(ilmconvert.info(model).spec.to_dict())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {torchvision_zoo.FROZEN_EPS: 1e-5}),
    ],
)
def test_torchvision_weights_that_change_the_structure(
    name: str, args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = randomize_norms(torchvision_zoo.build(name, dict(args)))
    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    (tmp_path / "checkpoints").mkdir()
    torch.save(published.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[-1])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model = create_model(f"torchvision/{name}")
    assert same_state(model, published)
    assert ilmconvert.info(model).spec.model_args == args
    rebuilt = ilmconvert.info(model).spec.build()
    assert repr(rebuilt) == repr(model)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in rebuilt.modules()) == ("fasterrcnn" in name)
