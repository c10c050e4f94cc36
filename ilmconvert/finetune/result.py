"""What a run tells while it goes on, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilmconvert._constants import shown_by


@dataclass(frozen=True)
class Progress:
    """Where a run stands, after every batch.

    Attributes:
        run: "" for the run itself, else the name of the baseline.
        epoch, epochs: the epoch that goes on, from 1, and how many there are.
        step, steps: optimizer steps done, and all of them.
        loss, top1: means over this epoch so far; None where there is none (``top1``: no labels, or mixed ones).
        lr: the learning rate of a parameter without a factor of its own.
        images_per_second: over all processes, since this process started; None at first.
        eta: seconds to the end at that speed, validation not counted; None at first.
    """

    run: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    top1: float | None
    lr: float
    images_per_second: float | None
    eta: float | None


@dataclass(frozen=True)
class Result:
    """What :func:`ilmconvert.finetune.finetune` returns.

    Attributes:
        output: the run folder.
        best, last: checkpoints for :func:`ilmconvert.load`; None after a dry run.
        best_epoch: the epoch of ``best``, from 1; None after a dry run.
        metrics: the row of ``metrics.csv`` of that epoch.
        summary: the content of ``summary.json``; after a dry run what would be run.
    """

    output: Path
    best: Path | None
    last: Path | None
    best_epoch: int | None
    metrics: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    _repr_html_ = shown_by("ilmconvert.report.notebook:result")
