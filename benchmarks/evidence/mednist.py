"""The set ``mednist``: MedNIST, X-rays, CT and MRI of six kinds in folders of that name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.evidence.folders import read_folders
from benchmarks.evidence.images import Splits

KINDS = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
_VALIDATION = 1_000


def read_mednist(place: Path, size: int) -> Splits:
    """The set at ``size`` pixels, from a folder with a folder of each of :data:`KINDS`."""
    splits = read_folders(place, KINDS, lambda folder: _scans(folder, size))
    return replace(splits, val=splits.val.subset(list(range(min(_VALIDATION, len(splits.val))))))


def _scans(folder: Path, size: int) -> Iterator[Tensor]:
    """The grey images of a folder, as RGB."""
    for file in sorted(folder.glob("*.jp*g")):
        with Image.open(file) as scan:
            yield pil_to_tensor(scan.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
