"""The course of a run as an image."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ilmconvert.checkpoint.atomic_write import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PathLike = str | os.PathLike[str]

#: The panels: the label of the y axis, and the columns of ``metrics.csv`` for training and for validation.
PANELS = (("loss", "train_loss", "val_loss"), ("top-1 accuracy", "train_top1", "val_top1"))
INCHES, DPI = (10.0, 4.0), 120


def plot_curves(metrics_csv: PathLike, out: PathLike, baselines: Mapping[str, PathLike] = MappingProxyType({})) -> bool:
    """Draw loss and accuracy over the epochs of a run, and of its baselines, as a PNG.

    Args:
        metrics_csv: a run's ``metrics.csv``, with the columns epoch, train_loss, val_loss, train_top1 and val_top1;
            empty cells (epochs without validation, data without labels) are left out.
        out: the file to write; an existing one is replaced.
        baselines: names and the ``metrics.csv`` of other runs; only their validation curves are drawn.

    Returns:
        Whether there is an image: False without matplotlib, or before the first epoch.

    Raises:
        CheckpointError: ``out`` can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = _read(metrics_csv)
    if not rows:
        return False
    others = {name: _read(path) for name, path in baselines.items()}
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, train, val) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _draw(axes, rows, train, "training", color="C0", linestyle=":")
        _draw(axes, rows, val, "validation", color="C0", linewidth=2.0)
        for index, (name, other) in enumerate(others.items(), start=1):
            _draw(axes, other, val, f"{name}, validation", color=f"C{index}", linestyle="--")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend()
    write_atomically(out, lambda path: figure.savefig(path, format="png"))
    return True


def _read(path: PathLike) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _draw(axes: Axes, rows: list[dict[str, str]], column: str, label: str, **style: str | float) -> None:
    points = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
    if points:
        # a single epoch is a point, which a line alone wouldn't show
        axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=3, **style)  # type: ignore[arg-type]
