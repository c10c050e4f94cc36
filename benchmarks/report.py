"""Tables of measurements: as Markdown, as JSON, and their growth series as a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None


@dataclass
class Table:
    """Rows of one measurement; all rows have the keys of the first."""

    title: str
    rows: list[dict[str, Cell]] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """Milliseconds of one candidate as one size grows; ``axis`` names the size, one panel each."""

    axis: str
    name: str
    sizes: Sequence[float]
    milliseconds: Sequence[float]


def environment(device: str) -> dict[str, Cell]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def bounded(ratio: float | None, bound: float | None) -> dict[str, Cell]:
    """The columns ``bound`` and ``met`` of a row.

    >>> bounded(1.25, 2.0)
    {'bound': 2.0, 'met': True}
    """
    return {"bound": bound, "met": None if bound is None or ratio is None else ratio <= bound}


def to_markdown(table: Table) -> str:
    """
    >>> print(to_markdown(Table("Speed", [{"layer": "a", "ms": 1.234, "met": True}])))
    ### Speed
    <BLANKLINE>
    | layer | ms | met |
    |---|---|---|
    | a | 1.23 | yes |
    """
    columns = list(table.rows[0]) if table.rows else []
    lines = [f"### {table.title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_text(row[column]) for column in columns)} |" for row in table.rows]
    return "\n".join(lines)


def publish(
    name: str, tables: Sequence[Table], where: Mapping[str, Cell], out: Path | None, series: Sequence[Series] = ()
) -> None:
    """Prints the tables; with ``out``, also writes ``name``.md, .json and, where matplotlib is there, .png."""
    facts = ", ".join(f"{key} {value}" for key, value in where.items())
    text = "\n\n".join([facts, *(to_markdown(table) for table in tables if table.rows)])
    print(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    record = {"environment": dict(where), "tables": [asdict(t) for t in tables], "series": [asdict(s) for s in series]}
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if series:
        plot(series, out / f"{name}.png")


def plot(series: Sequence[Series], path: Path) -> bool:
    """One log-log panel an axis; False, and no file, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    axes = list(dict.fromkeys(s.axis for s in series))
    figure = Figure(figsize=(4.5 * len(axes), 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for s in series:
            if s.axis == axis:
                panel.loglog(s.sizes, s.milliseconds, marker="o", label=s.name)
        panel.set(xlabel=axis, ylabel="ms")
        panel.grid(alpha=0.3)
    panels[0].legend()
    save_figure(figure, path)
    return True


def save_figure(figure: Figure, output: Path) -> None:
    """A matplotlib figure as a file; the same figure is the same file, byte for byte."""
    import matplotlib

    output.parent.mkdir(parents=True, exist_ok=True)
    vector = output.suffix == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": output.name}):
        figure.savefig(output, dpi=110, metadata={"Date": None} if vector else None)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "**no**"
    return (
        f"{cell:.3g}"
        if isinstance(cell, float) and abs(cell) < 100
        else f"{cell:.0f}"
        if isinstance(cell, float)
        else str(cell)
    )
