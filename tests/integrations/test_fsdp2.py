"""FSDP2: two processes take the step of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ilmconvert import ConversionError, convert, load, save
from tests.helpers import randomize_norms, relative_error
from tests.integrations.pages import assert_norms_learnt, assert_same, blocks, evaluate

ROOT = Path(__file__).resolve().parent.parent.parent


def step(model: nn.Module) -> nn.Module:
    """The page's step on all images at once."""
    torch.manual_seed(1)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(model.num_classes, (4,))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return model


@pytest.mark.slow
def test_page(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = randomize_norms(timm.create_model("resnet18", num_classes=10), scale=0.5)
    start, x = convert(source), torch.randn(2, 3, 64, 64)
    assert_same(evaluate(start, x), evaluate(source, x))
    save(start, tmp_path / "resnet18-ilm_gn.safetensors")
    (script,) = blocks("fsdp2", "python")
    (tmp_path / "train_sharded.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "train_sharded.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    trained = load(tmp_path / "trained.safetensors")
    assert_norms_learnt(trained, start)
    expected = step(load(tmp_path / "resnet18-ilm_gn.safetensors"))
    # Gradients of two halves are added in another order; the rest is the same arithmetic.
    for (name, got), wanted in zip(trained.named_parameters(), expected.parameters(), strict=True):
        assert relative_error(got, wanted) <= 1e-4, name


def _sharded_alone(folder: str) -> None:
    """In a process of its own: what is refused while a model is sharded."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from ilmconvert import CheckpointError

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    source = randomize_norms(timm.create_model("test_resnet"))
    model = convert(source)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    with pytest.raises(CheckpointError, match="is a DTensor, not a plain tensor; save the model before"):
        save(model, f"{folder}/sharded.safetensors")
    with pytest.raises(ConversionError, match="convert the model before fully_shard"):
        convert(fully_shard(source, mesh=mesh))
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_models_are_refused(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=_sharded_alone, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
