"""Folded and exported models compute what the model computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ilmconvert import ILMNorm, convert, save, standardize_input
from ilmconvert.cli import main
from ilmconvert.errors import ExportError
from ilmconvert.export.fold import WithoutMeta, _Affine, fold
from ilmconvert.export.formats import export
from ilmconvert.models.create import create_model
from tests.helpers import ROOT, randomize_norms, relative_error


def disturb(model: nn.Module, *, keep: str = "nothing") -> nn.Module:
    """Move every parameter of every ILM Norm, as training does, but those whose name holds ``keep``."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ILMNorm):
                for name, p in module.named_parameters():
                    if keep not in name and p.requires_grad:
                        p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


def network(name: str = "test_efficientnet", **settings: object) -> nn.Module:
    return convert(randomize_norms(create_model(name, weights="none")), **settings)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: network(), _Affine),
        (lambda: disturb(network(), keep="decoder"), WithoutMeta),
        (lambda: disturb(network()), ILMNorm),
        (lambda: network(restore_bound=2.0), WithoutMeta),
        (lambda: network(init="moments"), nn.GroupNorm),
        (lambda: network("test_efficientnet_gn"), nn.GroupNorm),
    ],
    ids=["identity", "trained without meta-network", "trained", "bounded", "moments", "group norm"],
)
def test_folding_keeps_the_function(model: object, kind: type) -> None:
    original = model().eval()
    folded = fold(original)
    x = 3 * torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(folded(x), original(x)) <= 1e-5
    assert sum(isinstance(m, kind) for m in folded.modules()) == 13
    assert sum(isinstance(m, ILMNorm) for m in original.modules()) == 13


@pytest.mark.slow
def test_pt2_with_any_batch_and_size(tmp_path: Path) -> None:
    model = disturb(network("test_resnet"))
    path = export(model, tmp_path / "m.pt2", format="pt2", dynamic_size=True)
    program = torch.export.load(path).module()
    for shape in [(1, 3, 64, 64), (3, 3, 96, 80)]:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(program(x), model(x)) <= 1e-5


@pytest.mark.slow
def test_aoti_is_compiled_and_computes_the_same(tmp_path: Path) -> None:
    model = disturb(network("test_resnet"))
    file = save(model, tmp_path / "m.safetensors")
    result = CliRunner().invoke(main, ["export", str(file), "--format", "aoti", "--size", "64"])
    assert result.exit_code == 0, result.output
    package = torch._inductor.aoti_load_package(str(tmp_path / "m.aoti.pt2"))
    for batch in (1, 3, 17):
        x = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            assert relative_error(package(x), model(x)) <= 1e-5


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dynamic_size", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_in_onnxruntime(tmp_path: Path, dynamic_size: bool) -> None:
    model = disturb(network("test_resnet"))
    standardize_input(model, [torch.randn(1, 3, 64, 64)], std=0.6)
    session = session_of(export(model, tmp_path / "m.onnx", dynamic_size=dynamic_size, size=64))
    axes = ["height", "width"] if dynamic_size else [64, 64]
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", 3, *axes])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("output", ["batch", 1000])]
    for shape in [(1, 3, 64, 64), (3, 3, 96, 80) if dynamic_size else (3, 3, 64, 64)]:
        x = torch.randn(shape)
        (y,) = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(y), model(x)) <= 1e-4


def test_several_outputs_have_names(tmp_path: Path) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none", features_only=True)))
    session = session_of(export(model, tmp_path / "m.onnx", size=32, dynamic=False))
    assert [o.name for o in session.get_outputs()] == [f"output_{i}" for i in range(5)]
    assert session.get_inputs()[0].shape == [2, 3, 32, 32]


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_real_network_in_onnxruntime(tmp_path: Path, trained: bool) -> None:
    from ilmconvert.data.sample_photographs import load_lite0, preprocess, sample_photographs

    source = load_lite0()
    model = convert(source)
    if trained:
        disturb(model)
    path = export(model.eval(), tmp_path / "m.onnx", dynamic_size=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = preprocess(source, sample_photographs()[:4])
    for batch in (x, x[:1, :, :192, :160]):
        (y,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(y), model(batch)) <= 1e-4


def test_command(tmp_path: Path) -> None:
    model = network("test_resnet")
    standardize_input(model, [torch.randn(1, 3, 64, 64)], std=0.6)
    file = save(model, tmp_path / "m.safetensors")
    result = CliRunner().invoke(main, ["export", str(file), "--format", "pt2", "--size", "64"])
    assert result.exit_code == 0, result.output
    program, x = torch.export.load(tmp_path / "m.pt2").module(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(program(0.1 * x + 3), model(x)) <= 1e-4
    assert "(dynamic batch; traced with 2 x 3 x 64 x 64)" in result.output
    assert "Error against the model: " in result.output
    again = CliRunner().invoke(main, ["export", str(file), "--format", "pt2"])
    assert again.exit_code == 2
    assert "--force" in again.output
    both = CliRunner().invoke(main, ["export", str(file), "--static", "--dynamic-size", "--force"])
    assert both.exit_code == 2
    assert "leave one of them out" in both.output


def test_a_missing_extra_is_said_before_the_slow_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.export.export", lambda *args, **kwargs: pytest.fail("traced"))
    with pytest.raises(ExportError, match=r"pip install 'ilmconvert\[export\]'"):
        export(network("test_resnet"), tmp_path / "m.onnx")


def test_aoti_without_a_compiler(tmp_path: Path) -> None:
    save(network("test_resnet"), tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "ilmconvert", "--quiet", "export", "m.safetensors", "--format", "aoti"]
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("CXX", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Error: AOTInductor needs a C++ compiler; install g++ or clang, or use the format onnx\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_aoti_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of\nregisters")

    with pytest.raises(ExportError, match=r"are called \*\.pt2; write .*m\.pt2$"):
        export(network("test_resnet"), tmp_path / "m.onnx", format="aoti")
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(ExportError, match="can't compile the model: out of registers; use the format onnx or pt2"):
        export(network("test_resnet"), tmp_path / "m.pt2", format="aoti", dynamic=False, size=32)
    assert list(tmp_path.iterdir()) == []


class OfPositions(nn.Sequential):
    """A network with a value for each position, as transformers have."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.positions = nn.Parameter(torch.randn(8, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(x) + self.positions
        return result


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown format 'tflite'"):
        export(network(), tmp_path / "m", format="tflite")
    with pytest.raises(ExportError, match=r"AOTInductor miscompiles .*; leave out --dynamic-size"):
        export(network(), tmp_path / "m", format="aoti", dynamic_size=True)
    fixed = convert(randomize_norms(OfPositions()))
    with pytest.raises(ExportError, match="leave out --dynamic-size"):
        export(fixed, tmp_path / "m.pt2", format="pt2", dynamic_size=True, size=(3, 32, 32))
    assert list(tmp_path.iterdir()) == []
