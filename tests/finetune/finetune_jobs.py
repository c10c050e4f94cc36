"""Small fine-tuning runs, in this process or in others that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ilmconvert.data.open_data import Data
from ilmconvert.finetune import Result, finetune

CLASSES, SIZE = 4, 32
# What makes a run depend on every kind of random number: order, augmentation, dropout, drop path, mixup.
RANDOM = {
    "no_aug": False,
    "hflip": 0.5,
    "color_jitter": 0.2,
    "mixup": 0.4,
    "ema_decay": 0.9,
    "weight_decay": 1e-3,
}
SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.01,
    "clip_grad": 1.0,
    "workers": 0,
    "input_size": SIZE,
    "no_aug": True,  # a flip or a crop would change the class
}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.finetune.finetune_jobs", "ilmconvert.finetune.engine", "matplotlib.backends.backend_agg"]
)


def image(label: int, number: int, noise: float = 40.0) -> Image.Image:
    """A noisy image with a bright bar whose place tells the class."""
    pixels = np.random.default_rng(number).normal(90, noise, (SIZE, SIZE, 3))
    width = SIZE // CLASSES
    pixels[:, label * width : (label + 1) * width] += 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def bars(count: int = 24, *, labelled: bool = True, val: bool = True) -> Data:
    """Images that a small network can learn to tell apart."""

    def items(first: int, known: bool) -> list[tuple[Image.Image, int]]:
        return [(image(i % CLASSES, first + i), i % CLASSES if known else -1) for i in range(count)]

    names = tuple("abcd") if labelled else None
    description = {"source": "bars", "train": count}
    held_out = items(1000, True) if val else None
    return Data(items(0, labelled), held_out, names, len(names) if names else None, description, labelled)  # type: ignore[arg-type]


def network(name: str = "test_resnet", **args: Any) -> nn.Module:
    """A small network with BatchNorm whose running statistics are those of the images."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **args)
    x = torch.stack([tensor(image(i % CLASSES, i)) for i in range(16)])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.train()
    for norm in norms:
        norm.momentum = 0.3
    with torch.no_grad():
        for _ in range(12):
            model(x)
    for norm in norms:
        norm.momentum = 0.1  # as the architecture has it
    return model.eval()


def run(output: Path, *, data: Data | None = None, model: nn.Module | None = None, **settings: Any) -> Result:
    """A short run on :func:`bars`, without trackers."""
    recipe = settings.pop("recipe", "full")
    model = network() if model is None else model
    settings = {"num_classes": CLASSES, "log_with": (), **SETTINGS, **settings}
    return finetune(model, bars() if data is None else data, recipe, output=output, **settings)


def job(
    output: Path, rank: int, processes: int, port: int, settings: dict[str, Any], model_args: dict[str, Any]
) -> None:
    """What a process of :func:`launch` does."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    run(output, model=network(**model_args), **settings)
    if processes > 1:
        torch.distributed.destroy_process_group()


def launch(
    output: Path, processes: int = 1, *, model_args: dict[str, Any] | None = None, **settings: Any
) -> list[BaseProcess]:
    """Start a run in so many new processes, which talk by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[BaseProcess] = []
    for rank in range(processes):
        process = _context.Process(target=job, args=(output, rank, processes, port, settings, model_args or {}))
        process.start()
        started.append(process)
    return started


def finish(processes: list[BaseProcess], seconds: float = 120.0) -> None:
    """Wait for the end of a run, which has to be a good one."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    kill(processes)
    assert codes == [0] * len(codes), codes


def kill(processes: list[BaseProcess]) -> None:
    """SIGKILL."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def kill_when(processes: list[BaseProcess], happened: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Kill a run as soon as something has happened; False if it ended before."""
    end = time.monotonic() + seconds
    while not happened():
        if all(process.exitcode is not None for process in processes):
            return False
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
    kill(processes)
    return True


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
