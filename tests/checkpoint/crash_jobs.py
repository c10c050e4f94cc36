"""Jobs that are killed, starved or raced, in processes that start with everything imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch import nn

from ilmconvert import CheckpointError, convert, save
from ilmconvert.cli import main
from ilmconvert.errors import ILMConvertError
from tests.finetune import finetune_jobs
from tests.helpers import randomize_norms

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.finetune.finetune_jobs",
        "tests.checkpoint.crash_jobs",
        "ilmconvert.finetune.engine",
        "matplotlib.backends.backend_agg",
    ]
)
NOBODY = 65534


def start(job: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run a function of a module in a new process."""
    process = _context.Process(target=_quietly, args=(job, arguments))
    process.start()
    return process


def _quietly(job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    job(*arguments)


def network(seed: int, channels: int = 64) -> nn.Module:
    """A converted custom network, about 160 KB as a file."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3)]
    return convert(randomize_norms(nn.Sequential(*layers, nn.BatchNorm2d(channels)), seed=seed))


def save_network(path: Path, seed: int, times: int = 1) -> None:
    """Save it, several times over."""
    model = network(seed)
    for _ in range(times):
        save(model, path)


def convert_command(path: Path, weights: Path) -> None:
    """``ilmconvert convert``, from weights in a file to a checkpoint."""
    result = CliRunner().invoke(main, ["test_resnet", "--weights", str(weights), "-o", str(path), "--force"])
    assert result.exit_code == 0, result.output


def save_with_little_room(path: Path, limit: int, message: Path) -> None:
    """As :func:`save_network` where no file may be larger than ``limit`` bytes."""
    model = network(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    _note_refusal(model, path, message)


def save_as_nobody(path: Path, message: Path) -> None:
    """As :func:`save_network` without the rights of the user that runs the tests."""
    model = network(1)
    descriptor = os.open(message, os.O_WRONLY | os.O_CREAT)
    if os.getuid() == 0:
        os.setuid(NOBODY)
    _note_refusal(model, path, descriptor)


def finetune_run(path: Path) -> None:
    """A short fine-tuning run, started or resumed."""
    finetune_jobs.run(path, resume=True, save_every=1, **finetune_jobs.RANDOM)


def finetune_refused(path: Path, message: Path) -> None:
    """As :func:`finetune_run`; notes why it can't."""
    try:
        finetune_run(path)
    except ILMConvertError as error:
        message.write_text(str(error), encoding="utf-8")


def _note_refusal(model: nn.Module, path: Path, message: Path | int) -> None:
    try:
        save(model, path)
    except CheckpointError as error:
        with open(message, "w", encoding="utf-8") as file:
            file.write(str(error))


def wait_and_kill(process: BaseProcess, seconds: float) -> bool:
    """SIGKILL after so long; False if it had ended before."""
    process.join(seconds)
    alive = process.exitcode is None
    process.kill()
    process.join()
    return alive


def duration(job: Callable[..., None], *arguments: Any) -> float:
    """Seconds that a job takes in a process of its own; it has to end well."""
    began = time.monotonic()
    process = start(job, *arguments)
    process.join()
    assert process.exitcode == 0, process.exitcode
    return time.monotonic() - began
