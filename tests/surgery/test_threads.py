"""Threads that use one converted network, or load files, at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ilmconvert import convert, load, save
from ilmconvert.models.create import create_model
from tests.fuzz.cases import SLIM
from tests.helpers import randomize_norms

THREADS = 8


@pytest.mark.parametrize("train", [False, True])
def test_threads_get_what_one_thread_gets(train: bool) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none", **SLIM))).train(train)
    inputs = [torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4 * THREADS)]

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(train):
            return model(x).detach()

    alone = [call(x) for x in inputs]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(call, inputs))
    assert all(map(torch.equal, alone, together))


def test_threads_load_at_once(tmp_path: Path) -> None:
    """Building without values and without random numbers is a matter of the thread that does it."""
    model = convert(randomize_norms(create_model("test_resnet", weights="none", **SLIM)))
    path = save(model, tmp_path / "m.safetensors")

    def load_or_make(i: int) -> torch.Tensor:
        if i % 2:
            return torch.nn.Linear(3, 3).weight.detach()
        return torch.cat([t.flatten().double() for t in load(path).state_dict().values()])

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(load_or_make, range(2 * THREADS)))
    wanted = torch.cat([t.flatten().double() for t in model.state_dict().values()])
    assert all(torch.equal(t, wanted) for t in found[::2])
    assert all(t.device.type == "cpu" and 0 < t.abs().max() < 1 for t in found[1::2])
