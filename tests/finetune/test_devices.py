"""Runs that need a compiler or an accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import ilmconvert
from ilmconvert.finetune.networks import replace_head
from ilmconvert.models.create import create_model
from ilmconvert.models.head import classifier
from tests.finetune.finetune_jobs import bars, network, run
from tests.helpers import relative_error

ROOT = Path(__file__).resolve().parent.parent.parent


def accuracy(result: Any) -> float:
    return float(result.summary["last"]["val_top1"])


@pytest.mark.slow
def test_a_compiled_run_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    settings = {"model": network(num_classes=4), "num_classes": None, "epochs": 1}
    states = [load_file(run(tmp_path / str(c), compile=c, **settings).last) for c in (False, True)]
    assert states[0].keys() == states[1].keys(), "a compiled network is kept under the same names"
    assert max(relative_error(states[1][key], t) for key, t in states[0].items() if t.any()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"amp": "bf16", "channels_last": True, "ema_decay": 0.9},
        {"compile": True},
        {"grad_accum": 2, "batch_size": 4},
        {"recipe": "anneal"},
    ],
    ids=lambda settings: ",".join(map(str, settings.values())) or "float32",
)
def test_a_run_on_a_gpu_learns_and_loads(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(tmp_path, **{"data": bars(64), "epochs": 8, **settings})
    assert accuracy(result) > 0.6  # by chance 0.25
    loaded = ilmconvert.load(result.last)
    assert all(t.isfinite().all() for t in loaded.state_dict().values())


@pytest.mark.gpu
def test_a_new_head_is_the_same_on_a_gpu() -> None:
    heads = []
    for device in ("cpu", "cuda"):
        model = create_model("test_resnet", weights="none").to(device)
        replace_head(model, 5, seed=3)
        assert all(p.device.type == device for p in model.parameters())
        heads.append(classifier(model)[1].weight.detach().cpu())
    assert torch.equal(*heads)


@pytest.mark.gpu
def test_a_gpu_is_used(tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    run(tmp_path, epochs=1)
    assert torch.cuda.max_memory_allocated() > 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("launcher", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp2"])
def test_two_gpus_end_where_one_does(tmp_path: Path, launcher: list[str]) -> None:
    data = tmp_path / "data"
    for index, (image, label) in enumerate(bars(32).train):
        for split in ("train", "val"):
            path = data / split / "abcd"[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    ilmconvert.save(ilmconvert.convert(timm.create_model("test_resnet", num_classes=4)), tmp_path / "m.safetensors")
    options = ["finetune", str(tmp_path / "m.safetensors"), "--data", str(data), "-b", "8", "--epochs", "2"]
    options += ["--input-size", "32", "-j", "0", "--lr", "0.01", "--log-with", "none", "--no-aug", "--json"]
    states = []
    for name, launch in (("one", ["--num_processes", "1"]), ("two", ["--num_processes", "2", *launcher])):
        command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "ilmconvert", *options]
        done = subprocess.run(
            [*command, "-o", str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "finished"
        states.append(load_file(tmp_path / name / "last.safetensors"))
    assert max(relative_error(states[1][key], t) for key, t in states[0].items() if t.any()) < 1e-4
