"""The sets of the protocol as tensors of bytes, made once and kept in a folder."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from benchmarks.evidence.cifar import read_cifar10
from benchmarks.evidence.clipart import read_clipart
from benchmarks.evidence.images import Images, Splits
from benchmarks.evidence.mednist import read_mednist
from benchmarks.evidence.shifts import shifted
from ilmconvert.errors import ILMConvertError

FASHION_MNIST_ROOT = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
CLIPART_ROOT = Path("/usr/share/openclipart/png")  # of Debian's openclipart-png
CIFAR10_ROOT, MEDNIST_ROOT = Path("cifar-10"), Path("mednist")  # no package of Debian's has them


class Domain(NamedTuple):
    """A set whose images, in training, validation and test, are those of another in lights of its own.

    Attributes:
        base: the other set.
        lights: a part of the images in each; a shift and its severity, or None for images as they are.
        images: the training images are drawn from so many of the first; None is all.
    """

    base: str
    lights: tuple[tuple[str, int] | None, ...]
    images: int | None = None


_MIXED = (None, ("contrast", 5), ("darkness", 4), ("inversion", 5), ("fog", 5), ("uneven light", 5))
#: Several lights at once, which no one set of statistics fits; and single ones that are far from ImageNet's images.
DOMAINS = {
    "mixed-light": Domain("fashion-mnist", _MIXED, 10_000),
    "cifar-10-negatives": Domain("cifar-10", (("inversion", 5),)),
    "cifar-10-low-light": Domain("cifar-10", (("darkness", 5),)),
}
_TRAINING, _VALIDATION = 50_000, 1_000  # of a standard set's training images: the first, and the first of the rest


def load_splits(name: str, size: int, cache: Path, root: Path | None = None) -> Splits:
    """A set at ``size`` pixels, from ``cache`` where it has been made before.

    Args:
        root: the folder of the set's files; None is where :data:`SETS` looks for them.

    Raises:
        ILMConvertError: there is no such set, or its files aren't there.
    """
    if name not in SETS:
        raise ILMConvertError(f"there is no set {name!r}; use one of {', '.join(SETS)}")
    make, usual = SETS[name]
    place = root or usual
    if not place.is_dir():
        raise ILMConvertError(f"there is no folder {place} with the files of {name}; name it with --data-root")
    key = hashlib.sha256(f"{name} {size} {place.resolve()}".encode()).hexdigest()[:8]
    file = cache / f"{name}-{size}-{key}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = make(place, size, cache)
        parts = {part: (getattr(made, part).pixels, getattr(made, part).labels) for part in ("train", "val", "test")}
        torch.save({**parts, "num_classes": made.num_classes}, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    kept = torch.load(file, weights_only=True)
    train, val, test = (Images(*kept[part]) for part in ("train", "val", "test"))
    return Splits(train, val, test, kept["num_classes"])


def _fashion_mnist(place: Path, size: int, cache: Path) -> Splits:
    root = _unpacked(place, cache)
    try:
        known, test = FashionMNIST(root, train=True), FashionMNIST(root, train=False)
    except RuntimeError as error:
        raise ILMConvertError(f"{place} lacks files of Fashion-MNIST; name their folder with --data-root") from error
    return _standard(*(Images(data.data.unsqueeze(1), data.targets) for data in (known, test)), size)


def _cifar10(place: Path, size: int, cache: Path) -> Splits:
    del cache
    return _standard(*(Images(*read_cifar10(place, train)) for train in (True, False)), size)


def _clipart(place: Path, size: int, cache: Path) -> Splits:
    del cache
    return read_clipart(place, size)


def _mednist(place: Path, size: int, cache: Path) -> Splits:
    del cache
    return read_mednist(place, size)


def _standard(known: Images, test: Images, size: int) -> Splits:
    """A set with a test part of its own, enlarged; its validation images are of the last sixth of the others."""
    every, end = list(range(len(known))), min(_TRAINING, len(known) * 5 // 6)
    parts = known.subset(every[:end]), known.subset(every[end : end + _VALIDATION]), test
    return Splits(*(_enlarged(part, size) for part in parts), num_classes=10)


def _enlarged(images: Images, size: int) -> Images:
    """The images at ``size`` pixels, grey ones as RGB."""
    scaled = (to_pil_image(pixels).resize((size, size), Image.Resampling.BICUBIC) for pixels in images.pixels)
    pixels = torch.stack([pil_to_tensor(image.convert("RGB")) for image in scaled])
    return Images(pixels, images.labels.clone())


def _domain(domain: Domain, place: Path, size: int, cache: Path) -> Splits:
    plain = load_splits(domain.base, size, cache, place)
    first = Images(plain.train.pixels[: domain.images], plain.train.labels[: domain.images])
    parts = enumerate((first, plain.val, plain.test))
    return Splits(*(_in_lights(part, domain, seed) for seed, part in parts), plain.num_classes)


def _in_lights(images: Images, domain: Domain, seed: int) -> Images:
    """Every image in one of the domain's lights."""
    pixels = images.pixels.clone()
    light = torch.randint(len(domain.lights), (len(images),), generator=torch.Generator().manual_seed(seed))
    for number, found in enumerate(domain.lights):
        here = light == number
        if found is not None and here.any():
            pixels[here] = shifted(images.pixels[here], *found, seed)
    return Images(pixels, images.labels)


def _unpacked(place: Path, cache: Path) -> Path:
    """A root as torchvision expects it, for a folder of the four packed files; other folders as they are."""
    packed = sorted(place.glob("*-ubyte.gz"))
    if not packed:
        return place
    raw = cache / FashionMNIST.__name__ / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in packed:
        with gzip.open(file) as source, (raw / file.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return cache


#: How each set is made, and where its files are looked for: where Debian's package puts them, if there is one.
SETS: dict[str, tuple[Callable[[Path, int, Path], Splits], Path]] = {
    "fashion-mnist": (_fashion_mnist, FASHION_MNIST_ROOT),
    "clipart": (_clipart, CLIPART_ROOT),
    "cifar-10": (_cifar10, CIFAR10_ROOT),
    "mednist": (_mednist, MEDNIST_ROOT),
    "fashion-mnist-augmented": (_fashion_mnist, FASHION_MNIST_ROOT),  # in training, by the experiment
}
SETS |= {name: (partial(_domain, domain), SETS[domain.base][1]) for name, domain in DOMAINS.items()}
