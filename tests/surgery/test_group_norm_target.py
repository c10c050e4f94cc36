"""Plain GroupNorm networks: conversion, plan, checkpoint, stock timm, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from opacus.validators import ModuleValidator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import ilmconvert
from ilmconvert.checkpoint.save_load import load, read_header, save
from ilmconvert.cli import main
from ilmconvert.errors import CheckpointError, ConversionError
from ilmconvert.export.stock_timm import timm_arguments
from ilmconvert.surgery.group_norm_target import GroupNormConfig
from tests.helpers import relative_error, source_network

PLAIN = ("gn", "ln", "in")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("to", PLAIN)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_it_computes_what_the_moments_start_of_the_paper_layer_does(name: str, to: str) -> None:
    source = source_network(name)
    plain = ilmconvert.convert(source, to)
    # With eps alike both have the same formula: decoders of zeros are no meta-network.
    paper = ilmconvert.convert(source, f"ilm_{to}", init="moments")
    for module in (*plain.modules(), *paper.modules()):
        if isinstance(module, nn.GroupNorm | ilmconvert.ILMNorm):
            module.eps = 1e-5
    assert relative_error(plain(X), paper(X)) < 1e-3  # the start's own eps differs
    assert not any(isinstance(m, ilmconvert.ILMNorm | nn.BatchNorm2d) for m in plain.modules())


@pytest.mark.parametrize(("to", "groups"), [("gn", 12), ("ln", 1), ("in", 24)])
def test_the_layer_is_exact_for_an_instance_with_the_training_statistics(to: str, groups: int) -> None:
    source = nn.BatchNorm2d(24).eval()
    x = torch.randn(1, 24, 40, 40) * torch.rand(24, 1, 1) + torch.randn(24, 1, 1)
    source.running_mean.copy_(x.mean((0, 2, 3)))
    source.running_var.copy_(x.var((0, 2, 3), correction=0))
    nn.init.uniform_(source.weight, -2, 2)
    nn.init.normal_(source.bias)
    layer = ilmconvert.convert(nn.Sequential(source), to)[0]
    assert type(layer) is nn.GroupNorm
    assert layer.num_groups == groups
    assert relative_error(layer(x), source(x)) < 1e-4


def test_a_group_norm_of_the_same_groups_stays_exactly_itself() -> None:
    source = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16, eps=1e-3))
    nn.init.normal_(source[1].weight)
    assert torch.equal(ilmconvert.convert(source, "gn")(X), source(X))
    regrouped = ilmconvert.convert(source, "ln")[1]
    assert (regrouped.num_groups, regrouped.eps) == (1, 1e-3)
    assert torch.equal(regrouped.weight, source[1].weight)


def test_fused_activations_hooks_and_flags_are_kept() -> None:
    source = source_network("test_efficientnet")
    norm = next(m for m in source.modules() if isinstance(m, nn.BatchNorm2d))
    norm.weight.requires_grad_(False)
    seen: list[torch.Size] = []
    norm.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    plain = ilmconvert.convert(source, "gn")
    layer = next(m for m in plain.modules() if GroupNormConfig.of(m))
    assert type(layer).__name__ == "GroupNormAct"
    assert type(layer.act) is type(norm.act)
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    x = torch.randn(2, layer.num_channels, 5, 5)
    expected = layer.act(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps))
    assert torch.equal(layer(x), expected)
    assert seen == [x.shape]


@pytest.mark.parametrize("to", PLAIN)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_checkpoint_loads_by_itself(tmp_path: Path, name: str, to: str) -> None:
    plain = ilmconvert.convert(source_network(name, num_classes=7), to)
    path = save(plain, tmp_path / "x.safetensors")
    loaded = load(path)
    assert torch.equal(loaded(X), plain(X))
    assert ilmconvert.info(loaded).settings == {"to": to, "init": "moments"}
    assert {e["config"]["kind"] for e in read_header(path)["layers"]} == {"group_norm"}
    # and is written again, byte for byte
    assert save(loaded, tmp_path / "y.safetensors").read_bytes() == path.read_bytes()


def test_a_damaged_plain_layer_is_refused(tmp_path: Path) -> None:
    path = save(ilmconvert.convert(source_network(), "ln"), tmp_path / "x.safetensors")
    header = read_header(path)
    del header["tensors"]
    header["layers"][0]["config"]["num_groups"] = 7
    save_file(load_file(path), path, metadata={"format": "pt", "ilmconvert": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"settings of '.*' are damaged"):
        load(path)
    del header["layers"][0]["config"]["num_groups"]
    save_file(load_file(path), path, metadata={"format": "pt", "ilmconvert": json.dumps(header)})
    with pytest.raises(CheckpointError, match="damaged at layer"):
        load(path)


@pytest.mark.parametrize(
    ("name", "to", "norm_layer"),
    [
        ("resnet18", "gn", "groupnorm"),
        ("resnet18", "ln", "groupnorm1"),
        ("test_efficientnet", "ln", "groupnorm1"),
        ("regnetx_002", "ln", "groupnorm1"),
    ],
)
def test_stock_timm_loads_the_file(tmp_path: Path, name: str, to: str, norm_layer: str) -> None:
    plain = ilmconvert.convert(source_network(name, num_classes=5), to)
    path = save(plain, tmp_path / "x.safetensors")
    arguments = timm_arguments(plain)
    assert arguments is not None
    assert arguments["norm_layer"] == norm_layer
    stock = timm.create_model(**arguments, checkpoint_path=str(path)).eval()
    assert torch.equal(stock(X), plain(X))


def test_where_stock_timm_builds_another_network_it_gives_no_arguments() -> None:
    assert timm_arguments(ilmconvert.convert(source_network("test_resnet"), "gn")) is None  # 16 channels, not 32 groups
    assert timm_arguments(ilmconvert.convert(source_network("resnet18"), "in")) is None
    assert timm_arguments(ilmconvert.convert(source_network("resnet18"), "ln", exclude="bn1")) is None
    assert timm_arguments(ilmconvert.convert(source_network("resnet18"))) is None


def test_opacus_takes_plain_networks_as_they_are() -> None:
    plain = ilmconvert.convert(source_network(), "gn").train()
    assert ModuleValidator.validate(plain, strict=False) == []
    assert ModuleValidator.validate(source_network().train(), strict=False) != []


def test_a_plain_network_becomes_an_exact_ilm_source_network() -> None:
    plain = ilmconvert.convert(source_network(), "gn")
    assert relative_error(ilmconvert.convert(plain)(X), plain(X)) < 1e-5


def test_what_has_no_meaning_for_plain_layers_is_refused() -> None:
    source = source_network()
    with pytest.raises(ValueError, match="starts from moments only"):
        ilmconvert.convert(source, "gn", init="identity")
    with pytest.raises(ValueError, match="key_group_size=8 is for ilm_gn, ilm_ln, ilm_in"):
        ilmconvert.convert(source, "gn", key_group_size=8)
    with pytest.raises(ValueError, match=r"restore_bound=2\.0 is for ilm_gn"):
        ilmconvert.convert(source, "ln", restore_bound=2.0)
    with pytest.raises(ValueError, match="'ln' fixes the groups"):
        ilmconvert.convert(source, "ln", num_groups=8)
    with pytest.raises(ValueError, match=r"isn't one of .*'ilm_gn'.*'gn'"):
        ilmconvert.convert(source, "bn")
    with pytest.raises(ConversionError, match="nothing to convert"):
        ilmconvert.convert(nn.Sequential(nn.Linear(2, 2)), "gn")
    with pytest.raises(ConversionError, match=r"use ilmconvert\.calibration\.collapse\.collapse"):
        ilmconvert.convert(ilmconvert.convert(source), "gn")
    assert ilmconvert.convert(source, "gn", num_groups=4).bn1.num_groups == 4


def test_the_plan_says_what_comes(tmp_path: Path) -> None:
    plan = ilmconvert.plan(source_network(), "gn")
    assert "GroupNorm(8 groups)" in str(plan)
    assert plan.to_dict()["settings"]["init"] == "moments"


def test_the_command_line_converts_plans_and_inspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(source_network().state_dict(), "w.safetensors")
    runner = CliRunner()
    done = runner.invoke(main, ["test_resnet", "--to", "ln", "--weights", "w.safetensors", "--json"])
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["to"], summary["init"]) == ("ln", "moments")
    assert summary["timm"] == {"model_name": "test_resnet.r160_in1k", "norm_layer": "groupnorm1"}
    stock = timm.create_model(**summary["timm"], checkpoint_path=summary["output"]).eval()
    assert torch.equal(stock(X), load(summary["output"])(X))
    assert "GroupNorm(8 groups)" in runner.invoke(main, ["plan", "test_resnet", "--to", "gn"]).stdout
    shown = runner.invoke(main, ["inspect", summary["output"]])
    assert shown.exit_code == 0, shown.stderr
    assert "GroupNorm layers" in shown.stdout
    refused = runner.invoke(main, ["test_resnet", "--to", "gn", "--init", "identity", "--weights", "w.safetensors"])
    assert refused.exit_code == 2
    assert "starts from moments only" in refused.stderr


def test_the_benchmark_asks_timm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import stock_timm

    monkeypatch.setattr("sys.argv", ["stock_timm", "test_resnet", "vgg11_bn", "resnet18"])
    stock_timm.main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["resnet18", "groupnorm1", "groupnorm"],
        ["test_resnet", "groupnorm1", "-"],
        ["vgg11_bn", "-", "-"],
    ]
