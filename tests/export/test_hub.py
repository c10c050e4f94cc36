"""Published folders: what timm builds from them, what stands in them, and how they get to the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ilmconvert
from ilmconvert import CheckpointError, ILMNorm, ModelError, convert, load, push_to_hub, save, save_pretrained
from ilmconvert._constants import ENTRYPOINT
from ilmconvert.checkpoint.save_load import read_header
from ilmconvert.export.hub import HubError
from ilmconvert.models.create import create_model, list_models
from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline
from tests.helpers import randomize_norms

TINY = ["test_resnet", "test_byobnet", "test_efficientnet", "test_efficientnet_gn"]


def source_of(name: str, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(timm.create_model(name, **args)).eval()


def adapted(source: nn.Module, name: str, **args: Any) -> nn.Module:
    """The source's weights in what timm makes of other arguments, by timm's own means."""
    overlay = {"state_dict": source.state_dict()}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval()


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, list) else list(found.values()) if isinstance(found, dict) else [found]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def published(folder: Path, name: str = "test_resnet", to: str = "ilm_gn", **args: Any) -> tuple[nn.Module, Path]:
    model = convert(source_of(name, **args), to).eval()
    return model, save_pretrained(model, folder / "mine")


PAIRS = [(name, to) for name in TINY for to in ("ilm_gn", "ilm_ln", "gn")]
PAIRS.remove(("test_efficientnet_gn", "ilm_ln"))  # its groups can't become one


@pytest.mark.parametrize(("name", "to"), PAIRS)
def test_timm_builds_the_same_network(tmp_path: Path, name: str, to: str) -> None:
    model, folder = published(tmp_path, name, to)
    x = torch.randn(2, 3, 64, 64)
    for found in (timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), load(folder)):
        assert type(found) is type(model)
        assert equal(outputs(found, x), outputs(model, x))
        ours, theirs = model.state_dict(), found.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", TINY)
def test_another_head_and_other_channels_are_timms(tmp_path: Path, name: str) -> None:
    source = source_of(name)
    _, folder = published(tmp_path, name)
    x = torch.randn(2, 1, 64, 64)
    grey = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
    assert equal(outputs(grey, x), outputs(convert(adapted(source, name, in_chans=1)), x))
    few = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    assert few(x).shape == (2, 10)
    with torch.no_grad():
        assert torch.equal(few.forward_features(x), load(folder).forward_features(x))
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)(x).shape == (2, few.num_features)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"out_indices": (1, 3), "in_chans": 1}),
        ("test_resnet", {"feature_cls": "fx"}),
        ("test_resnet", {"feature_cls": "hook"}),
        ("test_resnet", {"feature_cls": "dict"}),
        ("test_resnet", {"feature_cls": "getter", "out_indices": (1, 2)}),
        ("test_byobnet", {}),
        ("test_efficientnet", {}),
        ("test_efficientnet", {"feature_cls": "getter"}),
        ("test_efficientnet", {"feature_location": "expansion"}),
        ("test_efficientnet_gn", {"out_indices": (0, 4)}),
    ],
)
def test_features_are_those_of_the_converted_extractor(tmp_path: Path, name: str, args: dict[str, Any]) -> None:
    source = source_of(name)
    _, folder = published(tmp_path, name)
    # An fx extractor is a graph of the source's forward: its norms are called by name, too.
    expected = convert(adapted(source, name, features_only=True, **args))
    found = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, **args).eval()
    x = torch.randn(2, args.get("in_chans", 3), 64, 64)
    assert len(outputs(found, x)) > 1
    assert equal(outputs(found, x), outputs(expected, x))
    assert found.feature_info.channels() == expected.feature_info.channels()
    new = timm.create_model(f"local-dir:{folder}", features_only=True, **args)
    assert [t.shape for t in outputs(new, x)] == [t.shape for t in outputs(expected, x)]
    for model in (found, new):
        assert any(isinstance(m, ILMNorm) for m in model.modules())
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


# fmt: off
FAMILIES = [
    "lcnet_035", "levit_128s", "mobilenetv3_small_050", "mobilenetv4_conv_small", "regnetx_002", "starnet_s1",
    "ghostnet_050", "shvit_s1", "efficientvit_b0", "mobilevit_xxs", "repvit_m0_9", "xcit_nano_12_p16_224",
    "visformer_tiny", "tf_efficientnet_lite0", "fastvit_t8", "repvgg_a0", "dpn48b",
    "xception41p", "tresnet_m", "hrnet_w18_small", "dla34", "cspresnet50", "densenet121",
]
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path: Path, name: str) -> None:
    """Whole, without a head, in grey and as features: what the conversion of timm's own network gives."""
    source = source_of(name)
    place = f"local-dir:{save_pretrained(convert(source), tmp_path / 'mine')}"
    size = source.pretrained_cfg["input_size"][-1] if source.pretrained_cfg["fixed_input_size"] else 96
    assert tried(place, source, name, size, {})
    assert tried(place, source, name, size, {"num_classes": 0})
    assert tried(place, source, name, size, {"in_chans": 1}) or source.pretrained_cfg["first_conv"] is None
    # timm itself has no feature extractors of these
    assert tried(place, source, name, size, {"features_only": True}) or name in ("ghostnet_050", "shvit_s1")


def tried(place: str, source: nn.Module, name: str, size: int, args: dict[str, Any]) -> bool:
    """Whether timm can build the source so; if it can, the published one has to be its conversion."""
    try:
        expected = convert(adapted(source, name, **args))
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    x = torch.randn(1, args.get("in_chans", 3), size, size)
    assert equal(outputs(timm.create_model(place, pretrained=True, **args).eval(), x), outputs(expected, x))
    return True


def test_without_weights_it_is_a_new_network(tmp_path: Path) -> None:
    model, folder = published(tmp_path)
    new = timm.create_model(f"local-dir:{folder}")
    assert {k: t.shape for k, t in new.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}
    norm, other = new.get_submodule("layer1.0.bn1"), model.get_submodule("layer1.0.bn1")
    assert isinstance(norm, ILMNorm)
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert norm.config() == other.config()
    assert not norm.ref_mean.requires_grad
    assert new(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_norms_that_were_left_out_stay(tmp_path: Path) -> None:
    model = convert(source_of("test_resnet"), exclude="layer2.*").eval()
    folder = save_pretrained(model, tmp_path / "mine")
    for args in ({}, {"features_only": True}):
        found = timm.create_model(f"local-dir:{folder}", pretrained=True, **args)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in found.modules()) == 3
        expected = model.get_submodule("layer2.0.bn1").running_mean
        assert torch.equal(found.get_submodule("layer2.0.bn1").running_mean, expected)


def test_types_follow_timms_rules(tmp_path: Path) -> None:
    model = convert(source_of("test_resnet").half())
    folder = save_pretrained(model, tmp_path / "mine")
    single = timm.create_model(f"local-dir:{folder}", pretrained=True)
    half = timm.create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.float16)
    assert {t.dtype for t in single.state_dict().values()} == {torch.float32}
    assert {t.dtype for t in half.state_dict().values()} == {torch.float16}
    assert {t.dtype for t in load(folder).state_dict().values()} == {torch.float16}
    assert all(torch.equal(t.half(), model.state_dict()[key]) for key, t in single.state_dict().items())


def test_timm_writes_it_again(tmp_path: Path) -> None:
    """As timm's train.py and users do after fine-tuning."""
    _, folder = published(tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    nn.init.normal_(model.get_submodule("layer1.0.bn1").weight_decoder)
    timm.models.save_for_hf(model, tmp_path / "again", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    assert equal(outputs(again, x), outputs(model, x))
    assert outputs(again, x)[0].shape == (2, 5)


def test_it_is_saved_again_as_what_it_was(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    path = save(model, tmp_path / "m.safetensors")
    assert read_header(path)["spec"]["architecture"] == "test_resnet.r160_in1k"
    assert equal(outputs(load(path), x), outputs(model, x))
    other = timm.create_model(f"local-dir:{save_pretrained(model, tmp_path / 'b')}", pretrained=True).eval()
    assert equal(outputs(other, x), outputs(model, x))
    assert other.pretrained_cfg["tag"] == "r160_in1k_ilm_gn"


def test_this_librarys_own_names(tmp_path: Path) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none")))
    note(model, provenance={"weights": "mine.pth"})
    folder = save_pretrained(model, tmp_path / "mine")
    found = create_model(f"local-dir:{folder}")
    x = torch.randn(2, 3, 64, 64)
    assert equal(outputs(found, x), outputs(model.eval(), x))
    assert ilmconvert.info(found).provenance == {"weights": "mine.pth"}
    assert ilmconvert.info(found).settings == {"to": "ilm_gn", "init": "identity"}
    assert ilmconvert.info(found).spec.architecture == "test_resnet.r160_in1k"
    new = create_model(f"local-dir:{folder}", weights="none", num_classes=3)
    assert new(x).shape == (2, 3)
    assert ENTRYPOINT not in list_models()


def test_a_base_that_came_from_a_folder_itself(tmp_path: Path) -> None:
    base = source_of("test_resnet", num_classes=7, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3), "tag": "own"})
    timm.models.save_for_hf(base, tmp_path / "base", safe_serialization=True)
    model = convert(create_model(f"local-dir:{tmp_path / 'base'}"))
    found = timm.create_model(f"local-dir:{save_pretrained(model, tmp_path / 'mine')}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    assert equal(outputs(found, x), outputs(model, x))
    assert tuple(found.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert found.pretrained_cfg["tag"] == "own_ilm_gn"
    loaded = load(save(found, tmp_path / "m.safetensors"))
    assert tuple(loaded.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)


# --- config.json and model card ---


def test_settings_are_in_timms_layout(tmp_path: Path) -> None:
    _, folder = published(tmp_path, num_classes=7, in_chans=1)
    config = json.loads((folder / "config.json").read_text())
    assert {"architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg"} <= set(config)
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (ENTRYPOINT, 7, 96)
    assert config["model_args"]["base"] == "test_resnet.r160_in1k"
    assert config["pretrained_cfg"]["input_size"][0] == 1
    assert len(config["model_args"]["layers"]) == 15
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as f:
        assert f.metadata()["format"] == "pt"
    assert str(tmp_path) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "mobilenetv3_small_050.lamb_in1k", "convnext_atto_ols.a2_in1k"])
def test_licence_and_origin_of_the_base_stay_and_the_tag_changes(tmp_path: Path, name: str) -> None:
    """On skeletons, whose settings alone matter here."""
    from ilmconvert.checkpoint.metadata import Metadata
    from ilmconvert.export.hub.card import card_of
    from ilmconvert.export.hub.config import config_of

    base = timm.create_model(name)
    model = base if "convnext" in name else convert(randomize_norms(base))
    layers = [] if "convnext" in name else None
    record = Metadata({"library": "timm", "architecture": name, "model_args": {}}, tuple(layers or ()))
    if layers is None:
        record = Metadata(record.spec, (), settings=ilmconvert.info(model).settings, provenance={"weights": "default"})
    config, cfg = config_of(model, record), timm.models.get_pretrained_cfg(name).to_dict()
    kept = config["pretrained_cfg"]
    for key in ("license", "origin_url", "paper_name", "paper_ids", "description", "mean", "std", "crop_pct"):
        assert kept.get(key) == (list(cfg[key]) if isinstance(cfg.get(key), tuple) else cfg.get(key))
    assert kept["tag"] == cfg["tag"] + ("_ilm" if layers is not None else "_ilm_gn")
    assert not {"url", "file", "hf_hub_id"} & set(kept)
    card = ModelCard(card_of(config, record, "hf-hub:me/mine", None))
    assert card.data.license == cfg.get("license")
    assert card.data.base_model == cfg["hf_hub_id"]
    assert card.data.library_name == "timm"
    for said in filter(None, (cfg.get("license"), cfg.get("origin_url"), cfg["hf_hub_id"], "hf-hub:me/mine")):
        assert said in card.text


def test_licence_names_that_the_hub_does_not_know(tmp_path: Path) -> None:
    overlay = {"license": "a-licence-of-ours", "origin_url": "https://example.org/x"}
    _, folder = published(tmp_path, pretrained_cfg_overlay=overlay)
    card = ModelCard((folder / "README.md").read_text())
    assert (card.data.license, card.data.license_name) == ("other", "a-licence-of-ours")
    assert "https://example.org/x" in card.text


def test_the_card_tells_only_what_was_measured(tmp_path: Path) -> None:
    source = source_of("test_resnet")
    model = convert(source)
    unmeasured = (save_pretrained(model, tmp_path / "a") / "README.md").read_text()
    assert "Not measured when this was written" in unmeasured
    measured = (save_pretrained(model, tmp_path / "b", source=source) / "README.md").read_text()
    assert "8 random inputs of 3 x 160 x 160" in measured
    assert "| same class | 100 % |" in measured
    with torch.no_grad():
        model.get_submodule("fc").weight.mul_(-1)
    worse = (save_pretrained(model, tmp_path / "b", source=source) / "README.md").read_text()
    assert "| same class | 0 % |" in worse
    assert "| ILM Norm | 32 | yes | 5 |" in measured


def test_a_fine_tuned_networks_card_says_so(tmp_path: Path) -> None:
    model = convert(source_of("test_resnet"))
    folder = save_pretrained(model, tmp_path / "a", provenance={"weights": "default", "finetuned": {"epoch": 3}})
    assert "It was fine-tuned after the conversion." in (folder / "README.md").read_text()


# --- what is refused ---


def test_what_cannot_be_published(tmp_path: Path) -> None:
    other = convert(randomize_norms(torchvision.models.resnet18()))
    cases = [
        (other, "a custom model; write it with ilmconvert.save"),
        (convert(randomize_norms(create_model("torchvision/mobilenet_v2", weights="none"))), "torchvision's mobilenet"),
        (convert(source_of("test_resnet", features_only=True)), "publish the whole one"),
        (source_of("test_resnet"), "holds no ILM Norm"),
    ]
    for model, message in cases:
        with pytest.raises(CheckpointError, match=message):
            save_pretrained(model, tmp_path / "x")
    model = convert(source_of("test_resnet"))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't write"):
        save_pretrained(model, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = published(tmp_path)
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_pretrained(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, c: a.update(base="os.system"), "'os.system' isn't a model"),
        (lambda a, c: a.update(base="torchvision/resnet18"), "isn't a model"),
        (lambda a, c: a.update(base=ENTRYPOINT), "isn't a model"),
        (lambda a, c: a.pop("base"), "built from a folder"),
        (lambda a, c: a.update(base=["x"]), "isn't a model"),
        (lambda a, c: a.update(layers="all"), "layers in its config.json are damaged"),
        (lambda a, c: a["layers"].append({"name": 3}), "damaged at layer"),
        (lambda a, c: a["layers"][0].update(name="layer1.0.conv1"), "is a Conv2d, not a layer"),
        (lambda a, c: a["layers"][0]["config"].update(num_channels=10**12), "channels, not 1000000000000"),
        (lambda a, c: a["layers"][0]["config"].update(num_groups=7), "num_groups=7 doesn't divide"),
        (lambda a, c: a["layers"][0]["config"].update(reduction=1, key_group_size=1), "has shape"),
        (lambda a, c: a["layers"][0].update(name="nowhere"), "no module 'nowhere'"),
        (lambda a, c: a["layers"].pop(), "the weights don't fit config.json: 2 tensors missing"),
        (lambda a, c: (a.update(num_classes=10**9), c.update(num_classes=10**9)), "a network of .* numbers"),
        (lambda a, c: a.update(in_chans=10**9), "a network of .* numbers"),
        (lambda a, c: a.update(base="vit_large_patch16_224"), "no module|a network of .* numbers"),
    ],
)
def test_damaged_settings_have_a_name(tmp_path: Path, change: Any, message: str) -> None:
    _, folder = published(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    change(config["model_args"], config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ModelError, match=message) as caught:
        create_model(f"local-dir:{folder}")
    assert "\n" not in str(caught.value)


def test_damaged_or_missing_weights(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="truncated"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    weights.unlink()
    with pytest.raises(ModelError, match="there is no file"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors"):
        load(folder)
    weights.write_bytes(whole)
    state = load_file(weights)
    del state["layer1.0.bn1.ref_std"]
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"1 tensors missing, first 'layer1\.0\.bn1\.ref_std'"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ModelError, match="built from a folder"):
        timm.create_model(ENTRYPOINT)


# --- the hub ---


def fill_cache(cache: Path, repository: str, folder: Path) -> None:
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = published(tmp_path)
    fill_cache(tmp_path / "cache", "me/mine", folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    x = torch.randn(2, 3, 64, 64)
    for found in (timm.create_model("hf-hub:me/mine", pretrained=True).eval(), create_model("hf-hub:me/mine")):
        assert equal(outputs(found, x), outputs(model, x))
    few = timm.create_model("hf-hub:me/mine", pretrained=True, num_classes=4, in_chans=1, features_only=False)
    assert few(x[:, :1]).shape == (2, 4)
    features = timm.create_model("hf-hub:me/mine", pretrained=True, features_only=True)
    assert len(features(x)) == 5
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match="no network to reach hf-hub:me/mine"):
        create_model("hf-hub:me/mine")


class FakeHub:
    """Stands for the hub: keeps what it is asked, and puts uploads into a cache as a download would."""

    def __init__(self, cache: Path, *, card: bool = False) -> None:
        self.cache, self.card, self.calls = cache, card, dict[str, Any]()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("create_repo", "file_exists", "upload_folder"):
            method = getattr(self, name)
            monkeypatch.setattr(HfApi, name, lambda api, *args, _method=method, **kw: _method(api, *args, **kw))

    def create_repo(self, api: HfApi, repo_id: str, **options: Any) -> SimpleNamespace:
        self.calls["create_repo"] = {"token": api.token, **options}
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def file_exists(self, api: HfApi, repo_id: str, filename: str, **options: Any) -> bool:
        return self.card

    def upload_folder(self, api: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> SimpleNamespace:
        self.calls["upload_folder"] = {**options, "files": sorted(p.name for p in Path(folder_path).iterdir())}
        fill_cache(self.cache, repo_id, folder_path)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/abc")


def test_push_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path)
    hub.install(monkeypatch)
    source = source_of("test_resnet")
    model = convert(source)
    url = push_to_hub(model, "me/mine", private=True, token="hf_x", source=source, commit_message="First")
    assert url == "https://huggingface.co/me/mine/commit/abc"
    assert hub.calls["create_repo"] == {"token": "hf_x", "private": True, "exist_ok": True}
    sent = hub.calls["upload_folder"]
    assert sent["files"] == sorted(sent["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]
    assert (sent["commit_message"], sent["create_pr"], sent["revision"]) == ("First", False, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    x = torch.randn(2, 3, 64, 64)
    assert equal(outputs(timm.create_model("hf-hub:me/mine", pretrained=True).eval(), x), outputs(model, x))
    card = (tmp_path / "models--me--mine" / "snapshots" / "abc" / "README.md").read_text()
    assert 'timm.create_model("hf-hub:me/mine", pretrained=True)' in card


def test_a_card_that_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path, card=True)
    hub.install(monkeypatch)
    push_to_hub(convert(source_of("test_resnet")), "me/mine")
    assert hub.calls["upload_folder"]["allow_patterns"] == ["model.safetensors", "config.json"]


def test_the_hub_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(api: HfApi, repo_id: str, **options: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(HubError, match=r"can't publish me/mine: no route to host; check .*hf auth login"):
        push_to_hub(convert(source_of("test_resnet")), "me/mine")
    with pytest.raises(CheckpointError, match="holds no ILM Norm"):
        push_to_hub(source_of("test_resnet"), "me/mine")


def test_public_names() -> None:
    assert {"save_pretrained", "push_to_hub", "save_delta", "apply_delta"} <= set(ilmconvert.__all__)
    assert ilmconvert.save_pretrained is save_pretrained


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub(tmp_path)
    hub.install(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    guide = (Path(__file__).parent.parent.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    code = "\n".join(blocks).replace('timm.create_model("resnet50", pretrained=True)', "base")
    found: dict[str, Any] = {"base": source_of("test_resnet")}
    exec(code, found)
    x = torch.randn(2, 3, 64, 64)
    for name in ("again", "same"):
        assert equal(outputs(found[name].eval(), x), outputs(found["model"].eval(), x))
    assert found["pets"](x).shape == (2, 37)
    assert found["grey"](x[:, :1]).shape == (2, 1000)
    assert len(found["backbone"](x)) == 5


def test_the_card_of_a_baseline_says_what_it_is(tmp_path: Path) -> None:
    source = randomize_norms(timm.create_model("test_resnet"))
    save_pretrained(group_norm_baseline(source, copy_affine=True), tmp_path / "gn")
    card = (tmp_path / "gn" / "README.md").read_text()
    assert "its norm layers replaced by GroupNorm with" in card
    assert "None" not in card
    config = json.loads((tmp_path / "gn" / "config.json").read_text())
    assert config["pretrained_cfg"]["tag"].endswith("_gn")
