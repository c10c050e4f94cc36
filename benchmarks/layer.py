"""The layer's time and memory against GroupNorm(32), BatchNorm2d and the authors' layer.

``python -m benchmarks.layer`` prints Markdown tables; ``--out DIR`` adds JSON and a plot of how the time grows.
All candidates take turns; times are medians. BatchNorm2d infers in evaluation mode and trains in training mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.layer_cases import (
    AUTHORS,
    BATCH,
    DTYPES,
    GROUP,
    ILM,
    QUICK_SHAPES,
    SHAPES,
    Shape,
    cases,
    inference,
    layers,
    make_input,
    training,
)
from benchmarks.layer_memory import measure_memory
from benchmarks.report import Cell, Series, Table, environment, publish
from benchmarks.timing import Timing, captured, interleaved
from ilmconvert.nn.kernels import dispatch
from ilmconvert.nn.kernels.formulas import statistics_dtype

FORWARD_BOUND, TRAINING_BOUND = 2.0, 1.7
# What of the layer's time is spent on tensors of the size of x; the rest is small operations on (N, C).
PASSES = "passes alone"
COMPILED, GRAPH = "compiled", "CUDA graph"
PARTS = ("time", "memory", "growth")
# Shapes that are also timed as ILM-LN and ILM-IN, and on which the authors' layer must be 10 times slower.
LEADING = 2

Turn = Callable[[], object]
Row = dict[str, Cell]


def passes(x: Tensor, grad: Tensor | None) -> Callable[[], None]:
    """The layer's passes over ``x``, and with ``grad`` those of its gradient."""
    channels = x.shape[1]
    finest = lcm(32, channels // 16)
    scale, shift = torch.randn(2, *x.shape[:2], device=x.device, dtype=statistics_dtype(x))

    def turn() -> None:
        with torch.no_grad():
            dispatch.moments(x, finest)
            dispatch.scale_shift(x, scale, shift)
            if grad is not None:
                dispatch.channel_sums(grad, x, scale.dtype)
                dispatch.combine(grad, scale, x, scale, shift)

    return turn


@dataclass(frozen=True)
class Way:
    """Where the layers run, and how beside eagerly."""

    device: str = "cpu"
    compiled: bool = False
    graphs: bool = False

    def turns(self, modules: Mapping[str, nn.Module], turn: Callable[[nn.Module], Turn]) -> dict[str, Turn]:
        """``turn`` of each module, and of some of them once more compiled and as a CUDA graph."""
        found = {name: turn(module) for name, module in modules.items()}
        if self.compiled:
            torch.compiler.reset()
            found |= {f"{name}, {COMPILED}": turn(torch.compile(modules[name])) for name in (ILM, GROUP)}
        if self.graphs:
            again = [name for name in found if name in (ILM, GROUP, BATCH) or name.endswith(COMPILED)]
            found |= {f"{name}, {GRAPH}": captured(found[name]) for name in again}
        return found


def row_of(case: Mapping[str, str], times: dict[str, Timing], bound: float | None, authors_bound: bool) -> Row:
    own, group = times[ILM], times[GROUP]
    row: Row = {
        **case,
        "ms": own.median * 1e3,
        "fastest": own.fastest * 1e3,
        "GroupNorm, ms": group.median * 1e3,
        **_ratios(times, ""),
        f"{PASSES}, to {GROUP}": times[PASSES].median / group.median,
    }
    for way in (COMPILED, GRAPH, f"{COMPILED}, {GRAPH}"):
        if f"{ILM}, {way}" in times:
            row |= {f"{way}, ms": times[f"{ILM}, {way}"].median * 1e3, **_ratios(times, f", {way}")}
    authors = times[AUTHORS].median / own.median if AUTHORS in times else None
    others = {f"G = {g}, ms": times[n].median * 1e3 if n in times else None for g, n in OTHER_GROUPS.items()}
    row |= {"fastest to fastest": own.fastest / group.fastest, "times faster than authors": authors, **others}
    if bound is None:
        return row
    fast_enough = own.median / group.median <= bound
    if authors is not None:
        fast_enough = fast_enough and authors >= (10 if authors_bound else 1)
    return {**row, "bound": bound, "met": fast_enough}


def _ratios(times: Mapping[str, Timing], way: str) -> Row:
    own = times[f"{ILM}{way}"].median
    return {f"to {k}{way}": own / times[f"{k}{way}"].median for k in (GROUP, BATCH) if f"{k}{way}" in times}


OTHER_GROUPS = {"1": "ILMNorm, G = 1", "C": "ILMNorm, G = C"}


def time_layers(shapes: tuple[Shape, ...], dtypes: list[str], way: Way, repeats: int) -> list[Table]:
    forward, both = Table("Forward, no_grad"), Table("Forward and backward")
    # The bounds are those of a CPU.
    bounds = (None, None) if way.device.startswith("cuda") else (FORWARD_BOUND, TRAINING_BOUND)
    for index, shape, name, dtype in cases(shapes, dtypes):
        x, grad = (make_input(shape, name, dtype, way.device) for _ in range(2))
        modules = {k: m.to(way.device, DTYPES[dtype]) for k, m in layers(shape[1], name, index < LEADING).items()}
        case = {"shape": str(shape), "format": name, "type": dtype}
        turns = way.turns(modules, partial(training, x=x, grad=grad)) | {PASSES: passes(x, grad)}
        both.rows.append(row_of(case, interleaved(turns, repeats, way.device), bounds[1], False))
        for module in modules.values():
            module.eval()
        turns = way.turns(modules, partial(inference, x=x)) | {PASSES: passes(x, None)}
        forward.rows.append(row_of(case, interleaved(turns, repeats, way.device), bounds[0], index < LEADING))
    return [forward, both]


def growth(device: str, repeats: int, quick: bool) -> list[Series]:
    """Forward time against channels, positions (the side of the map) and batch size; the others stay."""
    sizes = (1, 2) if quick else (1, 2, 4, 8, 16)
    axes: dict[str, list[Shape]] = {
        "channels": [(4, 64 * n, 28, 28) for n in sizes],
        "positions": [(4, 128, 7 * n, 7 * n) for n in sizes],
        "batch": [(2 * n, 128, 28, 28) for n in sizes],
    }
    series = []
    for axis, shapes in axes.items():
        taken: dict[str, list[float]] = {ILM: [], GROUP: [], AUTHORS: []}
        for shape in shapes:
            x = make_input(shape, "contiguous", "float32", device)
            modules = layers(shape[1], "contiguous", False)
            turns = {k: inference(modules[k].to(device).eval(), x) for k in taken}
            for k, timing in interleaved(turns, repeats, device).items():
                taken[k].append(timing.median * 1e3)
        where = {"channels": lambda s: s[1], "positions": lambda s: s[2] * s[3], "batch": lambda s: s[0]}[axis]
        series += [Series(axis, k, [where(s) for s in shapes], ms) for k, ms in taken.items()]
    return series


def growth_table(series: list[Series]) -> Table:
    table = Table("Growth, forward, contiguous float32, ms")
    for own in (s for s in series if s.name == ILM):
        others = {s.name: s.milliseconds for s in series if s.axis == own.axis}
        for i, size in enumerate(own.sizes):
            table.rows.append({"axis": own.axis, "size": size, **{k: ms[i] for k, ms in others.items()}})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append", help="one type only; both unless given")
    parser.add_argument("--repeats", type=int, help="counted turns of each candidate")
    parser.add_argument("--shape", action="append", help="NxCxHxW instead of the standard shapes; repeatable")
    parser.add_argument("--compile", action="store_true", help="also the compiled layer and the compiled GroupNorm")
    parser.add_argument("--cuda-graphs", action="store_true", help="also as CUDA graphs, which leave Python out")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; all unless given")
    parser.add_argument("--quick", action="store_true", help="small shapes and few turns, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for layer.md, layer.json and layer.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    if arguments.shape:
        shapes = tuple(tuple(int(n) for n in text.split("x")) for text in arguments.shape)
    dtypes, device = arguments.dtype or list(DTYPES), arguments.device
    repeats = arguments.repeats or (2 if arguments.quick else 21)
    where = environment(device)
    parts = arguments.only or PARTS
    way = Way(device, arguments.compile, arguments.cuda_graphs)
    tables = time_layers(shapes, dtypes, way, repeats) if "time" in parts else []
    if "memory" in parts:
        tables.append(measure_memory(shapes[:1] if arguments.quick else shapes, dtypes, device))
    series = growth(device, repeats, arguments.quick) if "growth" in parts else []
    publish("layer", [*tables, *([growth_table(series)] if series else [])], where, arguments.out, series)


if __name__ == "__main__":
    main()
