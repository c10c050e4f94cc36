"""The set ``clipart``: subjects of Debian's ``openclipart-png``, split by what the images are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.evidence.images import Splits, split_by_content
from ilmconvert.errors import ILMConvertError

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
    found = ((pixels, label) for label, subject in enumerate(SUBJECTS) for pixels in drawings(place / subject, size))
    try:
        return split_by_content(found, len(SUBJECTS))
    except ValueError as error:
        message = f"{place} lacks folders of the clip art ({', '.join(SUBJECTS)}); see --data-root"
        raise ILMConvertError(message) from error


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
