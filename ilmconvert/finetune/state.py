"""States to resume from: complete or not there at all, whenever the process is killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_model
from torch import nn

from ilmconvert.checkpoint.atomic_write import failed_writes, sync_folder
from ilmconvert.errors import FineTuneError, one_line
from ilmconvert.models.weight_files import sha256

KEPT = 2
_MANIFEST, _POSITION, _EMA = "manifest.json", "position.json", "ema.safetensors"
_NAME = re.compile(r"step-\d{8}")


@dataclass
class Position:
    """How far a run has come; JSON values.

    Attributes:
        epoch: complete epochs.
        batch: batches done in the epoch that goes on.
        seen: batches done in all.
        step: optimizer steps done in all.
        best: the best value so far of what decides about it; None before the first.
        best_loss: the validation loss then, which decides between equal values; None where there is none.
        best_epoch: when that was, from 1.
        stale: evaluations since then.
        seconds: spent on training.
        sums: per process, the running sums of the epoch that goes on.
        rows: of ``metrics.csv``.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    step: int = 0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    seconds: float = 0.0
    sums: list[list[float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


class StateFolder:
    """The states of a run, ``step-00000123`` and so on; the latest two are kept.

    A state is written as ``step-00000123.tmp``, flushed to disk and renamed; its manifest holds the SHA-256 of each
    file, so that later damage is noticed, too. All processes call each method; the main one alone decides.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path = path
        self._accelerator = accelerator
        accelerator.register_save_state_pre_hook(_bare_keys)
        accelerator.register_load_state_pre_hook(self._bare_models)

    def save(self, position: Position, ema: nn.Module | None) -> None:
        """Write the state at ``position`` and drop old ones.

        Raises:
            FineTuneError: it can't be written; the earlier states are untouched.
        """
        accelerator = self._accelerator
        final = self.path / f"step-{position.step:08d}"
        temporary = final.with_name(f"{final.name}.tmp")
        try:
            with failed_writes():
                self._write(temporary, final, position, ema)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise FineTuneError(f"can't write the state {final}: {error.strerror or error}; make room") from error
        accelerator.wait_for_everyone()

    def _write(self, temporary: Path, final: Path, position: Position, ema: nn.Module | None) -> None:
        accelerator = self._accelerator
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            if ema is not None:
                save_model(ema, str(temporary / _EMA))
            (temporary / _POSITION).write_text(json.dumps(asdict(position)), encoding="utf-8")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _complete(temporary, final)
            self._prune()

    def load_latest(self, ema: nn.Module | None) -> Position | None:
        """Restore everything from the latest complete state; None where there is none."""
        names = [self._latest() if self._accelerator.is_main_process else None]
        broadcast_object_list(names)
        if names[0] is None:
            return None
        folder = self.path / names[0]
        self._accelerator.load_state(str(folder))
        if ema is not None:
            load_model(ema, str(folder / _EMA))
        values = json.loads((folder / _POSITION).read_text(encoding="utf-8"))
        return Position(**{f.name: values[f.name] for f in fields(Position)})

    def clear(self) -> None:
        """Remove what is half written."""
        if self._accelerator.is_main_process and self.path.is_dir():
            for folder in self.path.glob("*.tmp"):
                shutil.rmtree(folder, ignore_errors=True)

    def _latest(self) -> str | None:
        for folder in reversed(self._complete_states()):
            problem = _damage(folder)
            if problem is None:
                return folder.name
            warnings.warn(f"the state {folder} is damaged ({problem}); taking the one before", stacklevel=4)
            shutil.rmtree(folder)
        return None

    def _complete_states(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(p for p in self.path.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))

    def _prune(self) -> None:
        for folder in self._complete_states()[:-KEPT]:
            shutil.rmtree(folder)

    def _bare_models(self, models: list[nn.Module], _: str) -> None:
        models[:] = [self._accelerator.unwrap_model(model) for model in models]


def _bare_keys(_: list[nn.Module], weights: list[dict[str, Any]], __: str) -> None:
    """Take DDP's prefix off, so that another number of processes can go on."""
    for state in weights:
        if all(key.startswith("module.") for key in state):
            for key in list(state):
                state[key.removeprefix("module.")] = state.pop(key)


def _complete(temporary: Path, final: Path) -> None:
    """Flush a folder to disk, with a manifest of its files, and give it its name."""
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    manifest = {p.relative_to(temporary).as_posix(): sha256(p) for p in files}
    text = json.dumps({"files": manifest, "checksum": _checksum(manifest)})
    (temporary / _MANIFEST).write_text(text, encoding="utf-8")
    for path in (*files, temporary / _MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    for folder in (*(p for p in temporary.rglob("*") if p.is_dir()), temporary):
        sync_folder(folder)
    if final.exists():  # of the same step; the state before it bridges the moment
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(final.parent)


def _damage(folder: Path) -> str | None:
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        manifest = content["files"]
        if content["checksum"] != _checksum(manifest):
            return f"{_MANIFEST} was changed"
        wrong = [name for name, expected in manifest.items() if sha256(folder / name) != expected]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return one_line(error)
    return f"{wrong[0]} was changed" if wrong else None


def _checksum(manifest: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
