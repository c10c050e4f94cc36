"""What a fine-tuning run left in its folder, and the table before, right after and after."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilmconvert._constants import shown_by
from ilmconvert.errors import ReportError, one_line
from ilmconvert.surgery.group_norm_baseline import BASELINES


@dataclass(frozen=True)
class Run:
    """A run folder, or the folder of one of its baselines.

    Attributes:
        path: the folder.
        name: "" for the run itself, else of the baseline.
        config: the content of ``config.yaml``.
        summary: of ``summary.json``; empty before it is written.
        rows: of ``metrics.csv``, one an epoch; empty cells are None.
        baselines: those that have a folder.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, float | None]]
    baselines: tuple[Run, ...] = ()

    _repr_html_ = shown_by("ilmconvert.report.notebook:run")

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.summary.get("status") == "finished"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The row of the best epoch; of a run that goes on, by accuracy, agreement or loss on validation images."""
        if self.summary.get("best") is not None:
            found: Mapping[str, Any] = self.summary["best"]
            return found
        for column, sign in (("val_top1", 1), ("val_agreement", 1), ("val_loss", -1)):
            scored = [(sign * value, row) for row in self.rows if (value := row.get(column)) is not None]
            if scored:
                return max(scored, key=lambda pair: pair[0])[1]
        return self.rows[-1] if self.rows else None

    @property
    def validation_images(self) -> int | None:
        """How many there are, where the folder says."""
        counts = (self.config.get("data", {}).get("val"), (self.summary.get("before") or {}).get("count"))
        return next((count for count in counts if isinstance(count, int) and count > 0), None)

    @property
    def validated(self) -> bool:
        """Whether an epoch was measured on validation images."""
        return any(row.get(column) is not None for row in self.rows for column in ("val_top1", "val_agreement"))

    @property
    def start(self) -> float | None:
        """The accuracy right after the norms were replaced, where it was measured."""
        found: float | None = (self.summary.get("before") or {}).get("top1")
        return found


@dataclass(frozen=True)
class Arm:
    """One network before, right after its norms were replaced, and after fine-tuning: top-1 shares or None.

    Attributes:
        name: "" for the converted network, else of the baseline.
        source: of the network before anything was done.
        start: right after its norms were replaced, before training.
        end, end_interval: of the best epoch, and Wilson's 95 % interval.
        best: the row of the best epoch.
        epochs: how many there were.
    """

    name: str
    source: float | None
    start: float | None
    end: float | None
    end_interval: tuple[float, float] | None
    best: Mapping[str, Any] | None
    epochs: int


def read_run(folder: str | Path) -> Run:
    """Read a run folder of :func:`ilmconvert.finetune.finetune`, finished or not.

    Raises:
        ReportError: the folder isn't one, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"there is no folder {folder}; give the folder that ilmconvert finetune -o wrote")
    run = _read(folder, "")
    inside = sorted(path for path in (folder / "baselines").glob("*") if (path / "config.yaml").is_file())
    known = list(run.summary.get("baselines", {}))
    inside.sort(key=lambda path: known.index(path.name) if path.name in known else len(known))
    baselines = tuple(_read(path, path.name) for path in inside)
    return Run(run.path, "", run.config, run.summary, run.rows, baselines)


def arms(run: Run) -> list[Arm]:
    """The converted network first, then the baselines.

    Where the head is new nothing can be told before training, and ``source`` and ``start`` are None.
    """
    source = (run.summary.get("before") or {}).get("against_top1")
    return [_arm(each, source) for each in (run, *run.baselines)]


def label(name: str, run: Run) -> str:
    """What a network is called in tables."""
    if name:
        return BASELINES.get(name, name)
    if not converted_here(run):
        return "converted checkpoint"
    recipe = run.config.get("recipe", {})
    target = str(recipe.get("to", "ilm_norm")).upper().replace("_", "-")
    return f"{target} in the first norm" if recipe.get("first_only") else target


def converted_here(run: Run) -> bool:
    """Whether the run started from a model whose norms were replaced first, not from a converted checkpoint."""
    return bool(run.config.get("model", {}).get("converted_here"))


def _arm(run: Run, source: float | None) -> Arm:
    best = run.best
    end = None if best is None else best.get("val_top1")
    count = run.validation_images
    interval = None
    if end is not None and count is not None:
        from ilmconvert.evaluation.metrics import wilson

        interval = wilson(round(end * count), count)
    return Arm(run.name, source, run.start, end, interval, best, len(run.rows))


def _read(folder: Path, name: str) -> Run:
    import yaml

    config_file, summary_file, metrics = (folder / n for n in ("config.yaml", "summary.json", "metrics.csv"))
    if not config_file.is_file():
        raise ReportError(f"{folder} holds no config.yaml; give the folder that ilmconvert finetune -o wrote")
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
        rows = _rows(metrics) if metrics.is_file() else []
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise ReportError(f"{folder} holds a damaged run ({reason}); run it again") from error
    if not isinstance(config, dict) or not isinstance(summary, dict):
        raise ReportError(f"{folder} holds a damaged run (not the content that finetune writes); run it again")
    return Run(folder, name, config, summary, rows)


def _rows(path: Path) -> list[dict[str, float | None]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(text) if text else None for key, text in row.items()} for row in csv.DictReader(file)]
