"""The frame of a figure as SVG: scales, ticks, grid. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44


@dataclass(frozen=True)
class Frame:
    """A plot area, and the ranges of x and y that it shows."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT

    def x(self, value: float) -> float:
        """The place of a value, in pixels."""
        return self.left + _share(value, self.x_range) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """The place of a value, in pixels; values out of range lie on the edge."""
        share = min(1.0, max(0.0, _share(value, self.y_range)))
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def grid(self, ticks: Sequence[float], label: Callable[[float], str]) -> Markup:
        """Horizontal lines with their labels."""
        lines = Markup()
        for tick in ticks:
            y = self.y(tick)
            lines += segment("grid", self.left, y, self.width - self.right, y)
            lines += text(self.left - 8, y + 4, label(tick), "tick end")
        return lines

    def below(self, ticks: Sequence[tuple[float, str]], name: str) -> Markup:
        """Labels under the x axis, and its name."""
        y = self.height - BOTTOM
        made = segment("axis", self.left, y, self.width - self.right, y)
        for value, label in ticks:
            made += segment("axis", self.x(value), y, self.x(value), y + 4)
            made += text(self.x(value), y + 18, label, "tick middle")
        return made + text((self.left + self.width - self.right) / 2, self.height - 6, name, "name middle")

    def svg(self, content: Markup, title: str, description: str) -> Markup:
        """The whole figure; ``title`` and ``description`` are for those who can't see it."""
        head = Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg"><desc>{}</desc>'
        ).format(self.width, self.height, title, description)
        return head + content + Markup("</svg>")


def text(x: float, y: float, content: str, kind: str) -> Markup:
    """A text; ``kind`` holds classes of the style sheet."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, kind, content)


def dot(x: float, y: float, kind: str, tip: str, radius: float = 3.2) -> Markup:
    """A point with a text that shows when the pointer rests on it."""
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}"><title>{}</title></circle>').format(
        x, y, radius, kind, tip
    )


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through points."""
    if len(points) < 2:
        return Markup()
    return Markup('<polyline points="{}" class="line {}"/>').format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in points), kind
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that span the range.

    >>> ticks(0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _share(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return (value - low) / (high - low) if high > low else 0.5
