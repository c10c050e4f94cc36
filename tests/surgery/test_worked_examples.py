"""CONTRIBUTING's examples of a new source and a new target, run as they stand there; and the table of targets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from torch import nn

from ilmconvert import ConversionError, ILMNorm, convert, load, plan, save
from ilmconvert._constants import TARGETS, Target
from ilmconvert.checkpoint.save_load import read_header
from ilmconvert.cli._common import conversion_options
from ilmconvert.errors import CheckpointError
from ilmconvert.surgery import sources
from ilmconvert.surgery.ilm_norm_target import ILMNormConfig
from ilmconvert.surgery.targets import config_class, config_of, read_config
from tests.helpers import ROOT, randomize_norms, relative_error, source_network

SOURCE, TARGET, LINE = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE
)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_new_source_is_one_file_and_one_line() -> None:
    names: dict[str, type[nn.Module]] = {"__name__": "doubled"}  # type: ignore[dict-item]
    exec(SOURCE, names)
    norm = names["DoubledBatchNorm"]
    try:
        source = randomize_norms(nn.Sequential(nn.Conv2d(3, 12, 3), norm(12))).eval()
        converted = convert(source)
        assert isinstance(converted[1], ILMNorm)
        assert relative_error(converted(X), source(X)) < 1e-5
    finally:
        del sources._registered[norm]
    assert plan(source).skipped


@pytest.fixture
def affine(monkeypatch: pytest.MonkeyPatch) -> Target:
    """The example's target: its file, and its line in the table."""
    module = ModuleType("ilmconvert.surgery.affine_target")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(TARGET, vars(module))
    ((name, target),) = eval(f"{{{LINE}}}", {"Target": Target}).items()
    monkeypatch.setitem(TARGETS, name, target)
    return target


def test_a_new_target_is_one_file_and_one_line(affine: Target, tmp_path: Path) -> None:
    source = randomize_norms(nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU())).eval()
    assert "BatchNorm2d  12        affine" in str(plan(source, "affine"))
    converted = convert(source, "affine")
    assert type(converted[1]).__name__ == "Affine"
    assert relative_error(converted(X), source(X)) < 1e-6
    path = save(converted, tmp_path / "x.safetensors")
    assert read_header(path)["layers"][0]["config"] == {"kind": "affine", "num_channels": 12, "num_groups": 1}
    assert torch.equal(load(path, into=source)(X), converted(X))


def test_it_keeps_fused_activations_and_refuses_what_it_cannot_compute(affine: Target) -> None:
    source = source_network("test_efficientnet")
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(convert(source, "affine")(x), source(x)) < 1e-5
    with pytest.raises(ConversionError, match="affine can't compute what it does: exclude it"):
        convert(nn.Sequential(nn.GroupNorm(1, 8)), "affine")
    with pytest.raises(ValueError, match=r"init='moments' is for .*: 'affine' starts from identity only"):
        convert(source, "affine", init="moments")
    with pytest.raises(ValueError, match="reduction=8 is for ilm_gn, ilm_ln, ilm_in; the layer of 'affine'"):
        convert(source, "affine", reduction=8)


def test_the_command_line_offers_it(affine: Target) -> None:
    command = click.command()(conversion_options(lambda **settings: None))
    (to,) = (p for p in command.params if p.name == "to")
    assert isinstance(to.type, click.Choice)
    assert tuple(to.type.choices) == (*("ilm_gn", "ilm_ln", "ilm_in", "gn", "ln", "in"), "affine")


def test_the_examples_hold_nothing_that_is_not_needed() -> None:
    for text in (SOURCE, TARGET):
        tree = ast.parse(text)
        imported = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert imported - used <= {"annotations"}


@pytest.mark.parametrize("to", TARGETS)
def test_settings_become_json_and_come_back(to: str) -> None:
    converted = convert(source_network(), to)
    for layer in (m for m in converted.modules() if config_of(m)):
        config = config_of(layer)
        assert config is not None
        assert type(config) is config_class(TARGETS[to])
        assert read_config(config.to_dict()) == config
        again = config.build(device="meta")
        assert config_of(again) == config
        assert {k: t.shape for k, t in again.state_dict().items()} == {
            k: t.shape for k, t in layer.state_dict().items()
        }


def test_the_settings_are_all_of_the_layers() -> None:
    of_layer = inspect.signature(ILMNorm.__init__).parameters.keys() - {"self", "device", "dtype"}
    assert {field.name for field in dataclasses.fields(ILMNormConfig)} == of_layer
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of(ILMNorm(8, 2, key_group_size=4)).num_groups = 4  # type: ignore[union-attr, misc]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "other"}, KeyError),
        ({"kind": ["group_norm"]}, KeyError),
        ({"more": 1}, KeyError),
        ({"num_groups": True}, ValueError),
        ({"num_groups": 2.0}, ValueError),
        ({"eps": float("nan")}, ValueError),
        ({"eps": "1e-5"}, ValueError),
        ({"restore": 1}, ValueError),
        ({"restore_bound": "2"}, ValueError),
        ({"restore_range": [0.0, None, 1.0]}, ValueError),
        ({"restore_range": (0.0, 1.0, 1.0)}, ValueError),
    ],
)
def test_damaged_settings_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    config = ILMNormConfig.of(ILMNorm(8, 2, key_group_size=4, restore=True))
    assert config is not None
    with pytest.raises(error):
        read_config({**config.to_dict(), **change})
    fewer = config.to_dict()
    del fewer["correction"]
    with pytest.raises(KeyError, match="correction"):
        read_config(fewer)


def test_a_file_of_an_unknown_kind_is_damaged(affine: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(convert(randomize_norms(nn.Sequential(nn.BatchNorm2d(8))), "affine"), tmp_path / "x.safetensors")
    monkeypatch.delitem(TARGETS, "affine")
    with pytest.raises(CheckpointError, match="damaged at layer"):
        load(path, into=nn.Sequential(nn.BatchNorm2d(8)))
