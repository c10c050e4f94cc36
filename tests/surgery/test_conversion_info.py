"""What a converted model tells of its conversion, and that it stays with the model."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import ilmconvert
from ilmconvert import ConversionInfo, convert, info
from ilmconvert.models.create import create_model
from ilmconvert.models.spec import ModelSpec
from tests.helpers import randomize_norms

SPEC = ModelSpec("timm", "test_resnet.r160_in1k", {"num_classes": 5})


def converted(to: str = "ilm_ln") -> nn.Module:
    return convert(randomize_norms(create_model("test_resnet", weights="none", num_classes=5)), to)


def through_a_checkpoint(model: nn.Module, folder: Path) -> nn.Module:
    return ilmconvert.load(ilmconvert.save(model, folder / "x.safetensors"))


def through_the_hub(model: nn.Module, folder: Path) -> nn.Module:
    ilmconvert.save_pretrained(model, folder / "hub")
    return timm.create_model(f"local-dir:{folder / 'hub'}", pretrained=True)


def through_a_delta(model: nn.Module, folder: Path) -> nn.Module:
    base = randomize_norms(create_model("test_resnet", weights="none", num_classes=5))
    ilmconvert.save_delta(convert(base, "ilm_ln"), folder / "d.safetensors", base=base)
    return ilmconvert.apply_delta(base, folder / "d.safetensors")


def through_torch_save(model: nn.Module, folder: Path) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way",
    [
        lambda model, folder: copy.deepcopy(model),
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        through_torch_save,
        through_a_checkpoint,
        through_the_hub,
        through_a_delta,
    ],
    ids=["deepcopy", "pickle", "torch.save", "checkpoint", "hub", "delta"],
)
def test_it_stays_with_the_model(way: Callable[[nn.Module, Path], nn.Module], tmp_path: Path) -> None:
    model = converted()
    before = info(model)
    found = info(way(model, tmp_path))
    assert found.spec is not None
    assert (found.spec.library, found.spec.architecture, found.spec.model_args["num_classes"]) == (
        "timm",
        "test_resnet.r160_in1k",
        5,
    )
    assert found.settings == {"to": "ilm_ln", "init": "identity"}
    assert found.provenance == {"weights": "none"}
    assert found.layers == before.layers
    assert len(found.layers) == 15
    assert {layer.config.num_groups for layer in found.layers} == {1}


def test_it_is_frozen_and_one_line_of_text() -> None:
    found = info(converted("gn"))
    assert (found.to, found.init) == ("gn", "moments")
    assert str(found) == ("15 GroupNorm layers (to gn, init moments) of timm/test_resnet.r160_in1k, weights none")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.spec = None  # type: ignore[misc]
    assert found.to_dict()["layers"][0] == found.layers[0].to_dict()


def test_what_is_known_before_a_conversion() -> None:
    source = create_model("test_resnet", weights="none", num_classes=5)
    assert info(source) == ConversionInfo(spec=SPEC, provenance={"weights": "none"})
    assert info(nn.Linear(2, 2)) == ConversionInfo()
    assert str(info(nn.Linear(2, 2))) == "no converted layers of a custom model"


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_as_the_whole_model(inplace: bool) -> None:
    norm = randomize_norms(nn.BatchNorm2d(8))
    found = info(convert(norm, inplace=inplace))
    assert found.settings == {"to": "ilm_gn", "init": "identity"}
    assert [layer.name for layer in found.layers] == [""]
    assert info(norm) == ConversionInfo()


def test_the_source_says_nothing_of_a_copy() -> None:
    source = randomize_norms(create_model("test_resnet", weights="none"))
    convert(source)
    assert info(source).settings == {}
    convert(source, inplace=True)
    assert info(source).to == "ilm_gn"
