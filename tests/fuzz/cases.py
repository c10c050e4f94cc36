"""Valid checkpoints to damage, and what becomes of a damaged one."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import nn

from ilmconvert import CheckpointError, convert, load, save
from ilmconvert.models.create import create_model
from tests.fuzz.mutations import mutate
from tests.fuzz.watch import watching
from tests.helpers import randomize_norms

#: What a file may cost beyond the tensors of the model that comes out: Python's own objects, and libraries that are
#: imported when the first model asks for them.
SECONDS, MEMORY_FACTOR, MEMORY_ALLOWANCE = 2.0, 2, 32 << 20
SLIM = {"num_classes": 4, "channels": [8, 8, 8, 16], "stem_width": 4}


class Tied(nn.Module):
    """A weight under two names and a norm under two names, in a custom model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(4)
        self.again = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.norm(self.first(x))))


class Valid(NamedTuple):
    """A file as it was written, and the model it goes into if it is a custom one."""

    name: str
    data: bytes
    into: Callable[[], nn.Module] | None = None


class Outcome(NamedTuple):
    """What became of a case: "loaded" or "refused", its cost, and the size of the model that came out."""

    kind: str
    message: str
    seconds: float
    wall: float
    memory: int
    allowed: int


@dataclass
class Broken(Exception):
    """A case that ended otherwise than it may; its file is kept."""

    what: str
    file: Path

    def __str__(self) -> str:
        return f"{self.what}: {self.file}"


def valid_files(folder: Path) -> list[Valid]:
    """One of each kind, written into ``folder``."""

    def slim(to: str) -> nn.Module:
        return convert(randomize_norms(create_model("test_resnet", weights="none", **SLIM)), to)

    models: dict[str, tuple[nn.Module, Callable[[], nn.Module] | None]] = {
        "ilm_gn": (slim("ilm_gn"), None),
        "gn": (slim("gn"), None),
        "half": (slim("ilm_ln").half(), None),
        "custom": (convert(randomize_norms(Tied())), Tied),
    }
    return [
        Valid(name, save(model, folder / f"{name}.safetensors").read_bytes(), into)
        for name, (model, into) in models.items()
    ]


def try_case(valid: Valid, seed: int, folder: Path) -> Outcome:
    """Damage a file as the seed says, and load it.

    Raises:
        Broken: anything but a model or a CheckpointError of one line, too slow, too large, or something touched.
    """
    path = folder / "case.safetensors"
    path.write_bytes(mutate(valid.data, Random(seed)))
    return try_file(path, valid.into)


def try_file(path: Path, make: Callable[[], nn.Module] | None) -> Outcome:
    """See :func:`try_case`."""
    into = make() if make else None
    before = _identity(into)
    model, message = None, ""
    with watching(path.parent) as watch:
        try:
            model = load(path, into=into)
        except CheckpointError as error:
            message = str(error)
        except Exception as error:
            raise Broken(f"{type(error).__name__} {error}"[:300], path) from error
    size = sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()) if model else 0
    allowed = size + MEMORY_FACTOR * path.stat().st_size + MEMORY_ALLOWANCE
    faults = {
        f"it touched {watch.touched[:1]}": bool(watch.touched),
        f"it took {watch.seconds:.1f} s": watch.seconds > SECONDS,
        f"it took {watch.memory} bytes of at most {allowed}": watch.memory > allowed,
        f"a message of several lines or of {len(message)} characters": len(message.splitlines()) > 1
        or len(message) > 2000,
        "a refused file changed the model it was to go into": model is None and _identity(into) != before,
    }
    for what, happened in faults.items():
        if happened:
            raise Broken(what, path)
    kind = "refused" if model is None else "loaded"
    return Outcome(kind, message, watch.seconds, watch.wall, watch.memory, allowed)


def _identity(model: nn.Module | None) -> list[tuple[str, int]]:
    if model is None:
        return []
    parts = (*model.named_modules(remove_duplicate=False), *model.state_dict(keep_vars=True).items())
    return [(name, id(part)) for name, part in parts]


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    """Counts, and the costliest."""
    kinds = collections.Counter(outcome.kind for outcome in outcomes)
    return {
        "cases": len(outcomes),
        "loaded": kinds["loaded"],
        "refused": kinds["refused"],
        "slowest_seconds": round(max(outcome.seconds for outcome in outcomes), 2),
        "slowest_wall_seconds": round(max(outcome.wall for outcome in outcomes), 2),
        "largest_memory_MiB": round(max(outcome.memory for outcome in outcomes) / 2**20, 1),
        "least_memory_left_MiB": round(min(o.allowed - o.memory for o in outcomes) / 2**20, 1),
    }
