"""The folder of a run: what was asked for, what happened, and the checkpoints."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert._constants import __version__
from ilmconvert.checkpoint.atomic_write import remove_leftovers, write_atomically
from ilmconvert.checkpoint.save_load import save_any
from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.run_config import check_same_run, read_config
from ilmconvert.surgery.conversion_info import noted

if sys.platform != "win32":
    import fcntl

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "restore",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top5",
    "val_agreement",
    "images_per_second",
    "seconds",
)
FINISHED, RUNNING = "finished", "running"
_PACKAGES = ("torchvision", "timm", "accelerate")


class RunFolder:
    """Paths and files of a run; only the main process writes, every file appears complete.

    Args:
        path: the folder, made when the first file is written.
        main: whether this is the main process.
    """

    path: Path
    main: bool
    config: Path
    run_file: Path
    metrics: Path
    best: Path
    last: Path
    summary: Path
    states: Path
    logs: Path

    def __init__(self, path: str | Path, *, main: bool = True) -> None:
        self.path = Path(path)
        self.main = main
        self.config, self.metrics = self.path / "config.yaml", self.path / "metrics.csv"
        self.run_file = self.path / "run.yaml"
        self.best, self.last = self.path / "best.safetensors", self.path / "last.safetensors"
        self.summary = self.path / "summary.json"
        self.states, self.logs = self.path / "state", self.path / "logs"

    def check(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse a folder that holds another run, or this one without ``resume``.

        Raises:
            FineTuneError: says what differs.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FineTuneError(f"{self.path} is a file; name a folder for the run")
        if not self.config.exists():
            return
        if not resume:
            raise FineTuneError(
                f"{self.path} holds a run already; continue it with --resume (resume=True) or name another folder"
            )
        check_same_run(self.path, read_config(self.config), config)

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other processes' runs out, see :func:`ilmconvert.finetune.run_folder.alone_in`."""
        return alone_in(self.path) if self.main else nullcontext()

    def clear(self) -> None:
        """Remove temporary files that a killed process left."""
        if self.main:
            remove_leftovers(self.path)

    def write_config(self, config: Mapping[str, Any], run_file: str | None = None) -> None:
        """Start the folder; ``config`` holds JSON values, ``run_file`` the options that repeat the run."""
        import yaml

        if self.main and not self.config.exists():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FineTuneError(f"can't make {self.path}: {error.strerror}; name another folder") from error
            if run_file is not None:
                self._write(self.run_file, run_file)
            content = {**config, "versions": versions()}
            self._write(self.config, yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All rows, one an epoch; None is an empty cell."""

        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)

        if self.main:
            write_atomically(self.metrics, write)

    def write_checkpoints(self, network: nn.Module, provenance: Mapping[str, Any], *, best: bool) -> None:
        """``last``, and a copy of it as ``best``; of baselines, too, in which nothing need be ours."""
        if not self.main:
            return
        save_any(network, self.last, provenance={**noted(network).provenance, "finetuned": dict(provenance)})
        if best:
            write_atomically(self.best, self._copy_last)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``summary.json``."""
        if self.main:
            self._write(self.summary, json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """What :meth:`write_summary` wrote; empty before that."""
        if not self.summary.exists():
            return {}
        result: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return result

    def _copy_last(self, path: Path) -> None:
        shutil.copyfile(self.last, path)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="utf-8")

        write_atomically(path, write)


def versions() -> dict[str, str]:
    """Of Python, this library and those that compute."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    python = platform.python_version()
    return {"ilmconvert": __version__, "python": python, "torch": str(torch.__version__), **found}


WAIT = 10.0  # seconds: processes of a killed launcher may take a moment to end


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes' runs out of ``folder``. The lock ends with the process, also if that is killed.

    Raises:
        FineTuneError: another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FineTuneError(f"can't write into {folder}: {error.strerror}; name another folder") from error
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    end = time.monotonic() + WAIT
    while True:
        try:
            # unlike flock, not inherited by the processes that read images
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise FineTuneError(f"another process is running in {folder}; wait for it, or end it") from error
        time.sleep(0.1)
