"""The tables and the figure of :mod:`benchmarks.evidence.batch_sizes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.evidence.arms import ARMS, FROZEN, WARM
from benchmarks.report import Cell, Table, save_figure
from ilmconvert.evaluation.estimate import estimate


class Point(NamedTuple):
    """One point of the figure."""

    arm: str
    batch_size: int


Found = Mapping[Point, Mapping[int, float]]  # test accuracy by seed


def table(found: Found) -> Table:
    """A row for each arm, a column for each batch size; what isn't there yet is a dash."""
    made = Table("Accuracy by batch size, equal numbers of images, 95 % intervals over seeds")
    sizes = sorted({point.batch_size for point in found})
    for arm in dict.fromkeys(point.arm for point in found):
        cells = {str(size): _accuracy(found.get(Point(arm, size))) for size in sizes}
        made.rows.append({"network": ARMS[arm].title, **cells})
    return made


def _accuracy(of: Mapping[int, float] | None) -> Cell:
    return estimate(list(of.values())).text() if of else "-"


def differences(found: Found) -> Table:
    """The same less frozen BatchNorm at the same batch size, paired by seed, with standard errors in brackets."""
    made = Table("Less frozen BatchNorm at the same batch size, paired by seed (standard errors)")
    sizes = sorted({point.batch_size for point in found})
    for arm in dict.fromkeys(point.arm for point in found if point.arm != _base(point.arm)):
        cells = {str(size): _difference(found, Point(arm, size)) for size in sizes}
        made.rows.append({"network": ARMS[arm].title, **cells})
    return made


def _difference(found: Found, point: Point) -> Cell:
    less = less_frozen(found, point)
    return estimate(less).as_difference() if less else "-"


def less_frozen(found: Found, point: Point) -> list[float]:
    """A point less frozen BatchNorm at its batch size, seed by seed; empty if one of them isn't there."""
    own, base = found.get(point), found.get(Point(_base(point.arm), point.batch_size))
    return [value - base[seed] for seed, value in own.items()] if own and base else []


def _base(arm: str) -> str:
    return FROZEN + WARM if arm.endswith(WARM) else FROZEN


def draw_figure(found: Found, output: Path) -> None:
    """The figure of the paper: accuracy over the batch size."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    for arm in dict.fromkeys(point.arm for point in found):
        points = {point.batch_size: estimate(list(of.values())) for point, of in found.items() if point.arm == arm}
        means, halves = [e.mean for e in points.values()], [e.half or 0.0 for e in points.values()]
        axes.errorbar(list(points), means, yerr=halves, marker="o", capsize=2, label=ARMS[arm].title)
    axes.set_xscale("log", base=2)
    sizes = sorted({point.batch_size for point in found})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="batch size", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, output)
