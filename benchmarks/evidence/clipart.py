"""The set ``clipart``: subjects of Debian's ``openclipart-png``, split by what the images are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.evidence.folders import read_folders
from benchmarks.evidence.images import Splits

SUBJECTS = (
    "animals",
    "computer",
    "food",
    "people",
    "recreation",
    "shapes",
    "signs_and_symbols",
    "transportation",
)


def read_clipart(place: Path, size: int) -> Splits:
    """The set at ``size`` pixels, from a folder with a folder of each of :data:`SUBJECTS`."""
    return read_folders(place, SUBJECTS, lambda folder: drawings(folder, size))


def drawings(folder: Path, size: int) -> Iterator[Tensor]:
    """The drawings under a folder, on white squares; those beyond Pillow's limit of pixels are left out."""
    for file in sorted(folder.rglob("*.png")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(file) as opened:
                    drawing = opened.convert("RGBA")
            except (Image.DecompressionBombWarning, Image.DecompressionBombError):
                continue
        drawing.thumbnail((size, size), Image.Resampling.BICUBIC)
        paper = Image.new("RGBA", (size, size), "white")
        corner = ((size - drawing.width) // 2, (size - drawing.height) // 2)
        paper.alpha_composite(drawing, corner)
        yield pil_to_tensor(paper.convert("RGB"))
