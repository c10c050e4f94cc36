"""The figures of the reports, as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ilmconvert.evaluation.layer_metrics import LayerFidelity, worst_layers
from ilmconvert.report.axes import WIDTH, Frame, dot, path, segment, text, ticks
from ilmconvert.report.text import decibels

ROUNDING_DECIBELS = (100.0, 140.0)
_FAR_FROM_ROUNDING = 60.0
_LETTER = 7.0
_ROW, _NARROW_ROW = 34, 54
_NARROW = 400


@dataclass(frozen=True)
class Share:
    """A row of :func:`shares_figure`: a share with its 95 % interval."""

    label: str
    value: float
    interval: tuple[float, float] | None
    kind: str


def layers_figure(layers: Sequence[LayerFidelity], *, narrow: bool = False) -> Markup:
    """Signal-to-error ratios over the layers in execution order; equal outputs lie on the upper edge."""
    values = [v for layer in layers for v in (layer.snr, layer.own_snr) if v is not None and math.isfinite(v)]
    near = shows_rounding(layers)
    marks = ticks(min(0.0, *values, 0.0), max([ROUNDING_DECIBELS[1] if near else 10.0, *values]), 6)
    frame = Frame((0.5, len(layers) + 0.5), (marks[0], marks[-1]), width=_NARROW if narrow else WIDTH)
    content = (
        (_rounding(frame) if near else Markup())
        + frame.grid(marks, lambda tick: f"{tick:.0f} dB")
        + frame.below(_stages(layers, frame), "layer, in execution order")
    )
    for kind, of in (("own", lambda layer: layer.own_snr), ("converted", lambda layer: layer.snr)):
        points = [
            (frame.x(i), frame.y(_height(of(layer), frame)), layer)
            for i, layer in enumerate(layers, 1)
            if of(layer) is not None
        ]
        content += path([(x, y) for x, y, _ in points], kind)
        for x, y, layer in points:
            content += dot(
                x, y, f"dot {kind}", f"{layer.name}: {decibels(of(layer))}{' by itself' if kind == 'own' else ''}"
            )
    content += _lowest(layers, frame)
    worst = worst_layers(layers, 1)[0]
    about = f"The ratio is lowest at {worst.name}, with {decibels(worst.snr)}. The table below holds every value."
    return frame.svg(content, "Signal-to-error ratio of every layer", about)


def shows_rounding(layers: Sequence[LayerFidelity]) -> bool:
    """Whether any layer comes so near to its source that the size of rounding errors tells something."""
    ratios = [ratio for layer in layers for ratio in (layer.snr, layer.own_snr) if ratio is not None]
    return any(ratio > _FAR_FROM_ROUNDING for ratio in ratios) or not any(map(math.isfinite, ratios))


def curves_figure(
    series: Mapping[str, Sequence[tuple[float, float]]],
    kinds: Mapping[str, str],
    label: str,
    value_text: Callable[[float], str],
    *,
    from_zero: bool = False,
) -> Markup:
    """Lines over epochs, one for each name; ``kinds`` holds their classes in the style sheet."""
    points = [point for line in series.values() for point in line]
    low, high = min(y for _, y in points), max(y for _, y in points)
    marks = ticks(0.0 if from_zero else low, high, 4)
    last = max(x for x, _ in points)
    first = min(x for x, _ in points)
    frame = Frame((min(first, last - 1), last), (marks[0], marks[-1]), width=400, height=250)
    epochs = [tick for tick in ticks(first, last, 6) if tick == int(tick) and first <= tick <= last] or [last]
    content = frame.grid(marks, value_text) + frame.below([(e, f"{e:.0f}") for e in epochs], "epoch")
    for name, line in series.items():
        content += path([(frame.x(x), frame.y(y)) for x, y in line], kinds[name])
        for x, y in line:
            content += dot(frame.x(x), frame.y(y), f"dot {kinds[name]}", f"{name}, epoch {x:.0f}: {value_text(y)}", 2.4)
    ends = "; ".join(f"{name} ends at {value_text(line[-1][1])}" for name, line in series.items() if line)
    return frame.svg(content, f"{label} over the epochs", ends)


def shares_figure(rows: Sequence[Share], label: str, *, narrow: bool = False) -> Markup:
    """Shares as points with their intervals, one row each; labels stand above their rows where it is ``narrow``."""
    ends = [end for row in rows for end in (row.value, *(row.interval or ()))]
    marks = ticks(max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02), 3 if narrow else 6)
    marks = [mark for mark in marks if 0 <= mark <= 1]
    row_height = _NARROW_ROW if narrow else _ROW
    size = {"width": _NARROW, "left": 26, "right": 34} if narrow else {"left": 312, "right": 40}
    frame = Frame((marks[0], marks[-1]), (0, 1), height=58 + row_height * len(rows), **size)
    content = Markup()
    for mark in marks:
        content += segment("grid", frame.x(mark), 8, frame.x(mark), frame.height - 44)
    content += frame.below([(mark, f"{100 * mark:.4g} %") for mark in marks], label)
    for i, row in enumerate(rows):
        y = 8 + row_height * (i + (0.72 if narrow else 0.5))
        if narrow:
            content += text(frame.left - 12, y - 16, row.label, "label halo start")
        else:
            content += text(frame.left - 14, y + 4, row.label, "label end")
        if row.interval is not None:
            content += segment(f"interval {row.kind}", frame.x(row.interval[0]), y, frame.x(row.interval[1]), y)
        content += dot(frame.x(row.value), y, f"dot {row.kind}", f"{row.label}: {100 * row.value:.1f} %", 5)
    about = "; ".join(f"{row.label} {100 * row.value:.1f} %" for row in rows)
    return frame.svg(content, label, about)


def _height(value: float | None, frame: Frame) -> float:
    if value is None or value != value:
        return frame.y_range[0]
    return min(max(value, frame.y_range[0]), frame.y_range[1])


def _lowest(layers: Sequence[LayerFidelity], frame: Frame) -> Markup:
    """The name of the worst layer, on the side of the points that is empty, and a line to its point."""
    worst = worst_layers(layers, 1)[0]
    x, y = frame.x(list(layers).index(worst) + 1), frame.y(_height(worst.snr, frame))
    heights = [frame.y(_height(value, frame)) for layer in layers for value in (layer.snr, layer.own_snr)]
    top, bottom = frame.y(frame.y_range[1]), frame.y(frame.y_range[0])
    above = min(heights) - top > bottom - max(heights)
    end = (min(heights) + top) / 2 if above else (max(heights) + bottom) / 2
    side = "start" if frame.width - frame.right - x > 200 else "end"
    line = segment("leader", x, y + (-6 if above else 6), x, end + (4 if above else -12))
    return line + text(x + (-4 if side == "start" else 4), end, f"{worst.name}, {decibels(worst.snr)}", f"note {side}")


def _rounding(frame: Frame) -> Markup:
    """A band where single precision's rounding lies."""
    low, high = (frame.y(value) for value in ROUNDING_DECIBELS)
    band = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="band"/>').format(
        frame.left, high, frame.width - frame.right - frame.left, low - high
    )
    return band + text(frame.left + 8, low + 16, "shaded: rounding in single precision", "tick halo")


def _stages(layers: Sequence[LayerFidelity], frame: Frame) -> list[tuple[float, str]]:
    """Where a new part of the network starts, as far as the labels have room."""
    marks: list[tuple[float, str]] = []
    before = None
    for i, layer in enumerate(layers, 1):
        parts = layer.name.split(".")
        stage = ".".join(parts[: 2 if len(parts) > 2 and parts[1].isdigit() else 1])
        room = frame.x(i) - frame.x(marks[-1][0]) if marks else frame.width
        if stage != before and room >= _LETTER / 2 * (len(stage) + len(marks[-1][1] if marks else "")) + 10:
            marks.append((i, stage))
        before = stage
    return marks
