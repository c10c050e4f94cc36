"""The set ``mednist``: MedNIST, X-rays, CT and MRI of six kinds in folders of that name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.evidence.images import Splits, split_by_content
from ilmconvert.errors import ILMConvertError

KINDS = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
_VALIDATION = 1_000


def read_mednist(place: Path, size: int) -> Splits:
    """The set at ``size`` pixels, from a folder with a folder of each of :data:`KINDS`, or from its ``resized``."""
    root = place / "resized" if (place / "resized").is_dir() else place
    missing = [kind for kind in KINDS if not (root / kind).is_dir()]
    if missing:
        raise ILMConvertError(f"{place} lacks folders of MedNIST ({', '.join(missing)}); see --data-root")
    found = ((pixels, label) for label, kind in enumerate(KINDS) for pixels in _scans(root / kind, size))
    splits = split_by_content(found, len(KINDS))
    return replace(splits, val=splits.val.subset(list(range(min(_VALIDATION, len(splits.val))))))


def _scans(folder: Path, size: int) -> Iterator[Tensor]:
    """The grey images of a folder, as RGB."""
    for file in sorted(folder.glob("*.jp*g")):
        with Image.open(file) as scan:
            yield pil_to_tensor(scan.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
