"""The set ``clipart``: subjects of Debian's ``openclipart-png``, split by what the images are."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.evidence.images import Images, Splits
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
    parts: dict[str, list[tuple[Tensor, int]]] = {"train": [], "val": [], "test": []}
    seen: set[bytes] = set()
    for label, subject in enumerate(SUBJECTS):
        for pixels in drawings(place / subject, size):
            mark = hashlib.sha256(pixels.numpy().tobytes()).digest()
            if mark not in seen:
                seen.add(mark)
                share = mark[0] / 256
                parts["test" if share < 0.15 else "val" if share < 0.3 else "train"].append((pixels, label))
    if not all(parts.values()):
        raise ILMConvertError(f"{place} lacks folders of the clip art ({', '.join(SUBJECTS)}); see --data-root")
    train, val, test = (_shuffled(parts[part]) for part in ("train", "val", "test"))
    return Splits(train, val, test, len(SUBJECTS))


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


def _shuffled(found: list[tuple[Tensor, int]]) -> Images:
    random.Random(0).shuffle(found)
    return Images(torch.stack([pixels for pixels, _ in found]), torch.tensor([label for _, label in found]))
