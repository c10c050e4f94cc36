"""The image of the front page: what the demo's networks see on three photographs.

python -m benchmarks.front_image -o docs/assets/front.svg

The photographs are scikit-image's, in the public domain (CC0). The classes and shares are those that
``ilmconvert demo`` prints.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from ilmconvert.data.sample_photographs import Photograph, sample_photographs
from ilmconvert.evaluation.demo import Comparison, DemoResult, run_demo

PHOTOGRAPHS = ("cat", "coffee", "rocket")
ROWS = {"source": "BatchNorm network", "copied": "GroupNorm in its place", "identity": "converted to ILM-GN"}
_SIDE, _LEFT, _STEP, _MARGIN, _ROW = 150, 300, 166, 20, 74
_WIDTH = _LEFT + (len(PHOTOGRAPHS) - 1) * _STEP + _SIDE + _MARGIN
_GOOD, _BAD = "#1a7f37", "#c62828"


@dataclass(frozen=True)
class Seen:
    """A row: what one network sees on each photograph, and how many images it classifies as the source does."""

    title: str
    classes: tuple[str, ...]
    same: int


def rows(result: DemoResult) -> list[Seen]:
    """The rows of the image."""
    places = [result.images.index(name) for name in PHOTOGRAPHS]
    networks: dict[str, Comparison] = {network.name: network for network in result.networks}
    count = len(result.images)
    return [
        Seen(title, tuple(networks[name].classes[i] for i in places), round(networks[name].agreement * count))
        for name, title in ROWS.items()
    ]


def svg(found: Sequence[Seen], count: int, images: Sequence[Image.Image]) -> str:
    """The image, on a ground of its own, so that it can be read on dark pages, too."""
    height = _MARGIN + _SIDE + len(found) * _ROW + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        ' font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
        f"<title>{escape(_summary(found, count))}</title>",
        f'<rect width="{_WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 62}" font-size="20" fill="#1f2328">What a real</text>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 90}" font-size="20" fill="#1f2328">ImageNet network sees</text>',
    ]
    for number, image in enumerate(images):
        place = f'x="{_LEFT + number * _STEP}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}"'
        lines.append(f'<image {place} href="{_embedded(image)}"/>')
    for number, row in enumerate(found):
        lines += _row(row, found[0], count, _MARGIN + _SIDE + number * _ROW)
    return "\n".join([*lines, "</svg>", ""])


def _row(row: Seen, source: Seen, count: int, top: int) -> list[str]:
    first = row is source
    share = f"{count} images" if first else f"same class: {row.same} of {count}"
    rule = f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{top + 8}" y2="{top + 8}" stroke="#d0d7de"/>'
    title = f'font-size="20" font-weight="600" fill="#1f2328">{escape(row.title)}'
    lines = [] if first else [rule]
    lines += [
        f'<text x="{_MARGIN}" y="{top + 40}" {title}</text>',
        f'<text x="{_MARGIN}" y="{top + 64}" font-size="18" fill="#57606a">{share}</text>',
    ]
    for number, (name, expected) in enumerate(zip(row.classes, source.classes, strict=True)):
        same = name == expected
        color = "#1f2328" if first else _GOOD if same else _BAD
        mark = "" if first else "✓ " if same else "✗ "
        x = _LEFT + number * _STEP + _SIDE // 2
        attributes = f'x="{x}" y="{top + 50}" font-size="22" text-anchor="middle" fill="{color}"'
        lines.append(f"<text {attributes}>{mark}{escape(name)}</text>")
    return lines


def _summary(found: Sequence[Seen], count: int) -> str:
    return "; ".join(f"{row.title}: {', '.join(row.classes)}, {row.same} of {count}" for row in found)


def _embedded(image: Image.Image) -> str:
    """The middle of an image as a data URI."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side)).resize((2 * _SIDE, 2 * _SIDE))
    stream = io.BytesIO()
    square.save(stream, "JPEG", quality=75, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def whole(photographs: Sequence[Photograph]) -> list[Image.Image]:
    """The photographs of the image, in its order."""
    by_name = {photograph.name: photograph.image for photograph in photographs}
    return [by_name[name] for name in PHOTOGRAPHS]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output: Path = parser.parse_args(argv).output
    result = run_demo()
    output.write_text(svg(rows(result), len(result.images), whole(sample_photographs())), encoding="utf-8")


if __name__ == "__main__":
    main()
