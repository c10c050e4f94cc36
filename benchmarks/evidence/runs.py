"""Runs as lines of JSON, and what has been chosen and measured so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.evidence.train import Settings
from ilmconvert.errors import ILMConvertError

SELECTION, FINAL = "selection", "final"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        phase: ``SELECTION`` or ``FINAL``.
        accuracy: on the validation images, or on the seed's part of the test set; chance for a run that diverged.
        shifted: accuracy by ``"shift severity"``; of final runs.
        moved: see :func:`benchmarks.evidence.movement.movement`; of final runs.
        loss: mean training loss of the last epoch; None if it isn't finite.
        seconds: of training; of runs that were trained together, their share.
    """

    image_set: str
    size: int
    budget: str
    arm: str
    phase: str
    seed: int
    rate: float
    distill: float
    norm_scale: float
    accuracy: float
    loss: float | None
    seconds: float
    shifted: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def settings(self) -> Settings:
        return Settings(self.rate, self.distill, self.norm_scale)

    @property
    def task(self) -> tuple[str, str, str]:
        """What settings are chosen for: set, budget, arm."""
        return self.image_set, self.budget, self.arm


class RunFile:
    """A file of runs that grows by whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = list(read(path)) if path.exists() else []
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # stopped within a line
            whole = path.read_text(encoding="utf-8").rpartition("\n")
            path.write_text(whole[0] + whole[1], encoding="utf-8")

    def add(self, run: Run) -> None:
        """Append a run and have it on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(run)) + "\n")
        self.runs.append(run)


def read(path: Path) -> Iterator[Run]:
    """The runs of a file; a last line that was cut off is left out.

    Raises:
        ILMConvertError: another line isn't a run.
    """
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield Run(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ILMConvertError(f"line {number} of {path} isn't a run ({error}); remove it") from error
