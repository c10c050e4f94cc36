"""Sets of folders, one for each class, without a test part of their own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.evidence.images import Images, Splits
from ilmconvert.errors import ILMConvertError


def read_folders(place: Path, classes: Sequence[str], images: Callable[[Path], Iterable[Tensor]]) -> Splits:
    """Images shuffled and split by their hashes: 15 % test, 15 % validation, the rest training.

    Identical images count once.

    Args:
        place: has a folder of each class.
        images: those of a folder, (3, H, W) of bytes.

    Raises:
        ILMConvertError: folders are missing, or so many images that a part is empty.
    """
    missing = [name for name in classes if not (place / name).is_dir()]
    if missing:
        raise ILMConvertError(
            f"{place} lacks the folders {', '.join(missing)}; name the one that has them: --data-root"
        )
    parts: dict[str, list[tuple[Tensor, int]]] = {"train": [], "val": [], "test": []}
    seen: set[bytes] = set()
    for label, name in enumerate(classes):
        for pixels in images(place / name):
            mark = hashlib.sha256(pixels.numpy().tobytes()).digest()
            if mark not in seen:
                seen.add(mark)
                share = mark[0] / 256
                parts["test" if share < 0.15 else "val" if share < 0.3 else "train"].append((pixels, label))
    if not all(parts.values()):
        raise ILMConvertError(f"{place} has {len(seen)} images, too few to be split; name the whole set: --data-root")
    train, val, test = (_shuffled(parts[part]) for part in ("train", "val", "test"))
    return Splits(train, val, test, len(classes))


def _shuffled(found: list[tuple[Tensor, int]]) -> Images:
    random.Random(0).shuffle(found)
    return Images(torch.stack([pixels for pixels, _ in found]), torch.tensor([label for _, label in found]))
