"""Real, small, labelled image sets from the files inside scikit-learn, scikit-image and matplotlib; no download.

``digits`` are handwritten digits, enlarged. ``photographs`` asks from which photograph a small crop comes: the
training crops are cut from one half of it, the validation crops from the other, with a gap between. Each has a
version in another domain: ``digits-noise`` (low contrast and noise) and ``photographs-haze`` (every image under
haze of its own density and colour). :func:`write_set` writes a set as ``train/CLASS/*.png`` and ``val/CLASS/*.png``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ilmconvert.errors import ILMConvertError

SIZE = 96  # side of every image
MARGIN = 12  # around a digit
# Photographs and scans with texture all over; the key is the class.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "bricks": ("skimage", "data/brick.png"),
    "cameraman": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "officer": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
CROP = (0.18, 0.30)  # side of a crop over the shorter side of its photograph, from and to
GAP = 0.05  # of the width, between the training half and the validation half

Pixels = NDArray[np.float32]  # (SIZE, SIZE, 3), 0 to 1


@dataclass(frozen=True)
class Example:
    """One image; ``split`` is train or val."""

    split: str
    label: str
    image: Image.Image


@dataclass(frozen=True)
class ImageSet:
    """How a set is made: images a class in each split, and what happens to every image."""

    examples: Callable[[int, int, int], Iterator[tuple[str, str, Pixels]]]
    train: int
    val: int
    shift: Callable[[Pixels, np.random.Generator], Pixels] | None = None


def examples(name: str, seed: int, *, quick: bool = False) -> Iterator[Example]:
    """The images of a set. ``seed`` chooses the training images; the validation images are always the same.

    Raises:
        ILMConvertError: no such set, or a package that holds the images is missing.
    """
    if name not in SETS:
        raise ILMConvertError(f"unknown set {name!r}; use one of {', '.join(SETS)}")
    made = SETS[name]
    train, val = (2, 2) if quick else (made.train, made.val)
    rngs = {"train": np.random.default_rng((1, seed)), "val": np.random.default_rng(2)}
    for split, label, pixels in made.examples(seed, train, val):
        shifted = pixels if made.shift is None else made.shift(pixels, rngs[split])
        yield Example(split, label, Image.fromarray((shifted.clip(0, 1) * 255).round().astype(np.uint8)))


def write_set(name: str, seed: int, folder: Path, *, quick: bool = False) -> Path:
    """Writes a set under ``folder`` (see the module) unless it is there already, and returns its own folder."""
    home = folder / f"{name}-{'quick-' if quick else ''}{seed}"
    done = home / "complete"
    if done.exists():
        return home
    for index, example in enumerate(examples(name, seed, quick=quick)):
        path = home / example.split / example.label / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        example.image.save(path)
    done.touch()
    return home


def _digits(seed: int, train: int, val: int) -> Iterator[tuple[str, str, Pixels]]:
    """Training images from the first 1,000, validation images from the rest (other writers, mostly)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    split = 1000
    for digit in range(10):
        indices = np.flatnonzero(found.target == digit)
        pool = random.Random(f"{seed} {digit}").sample(indices[indices < split].tolist(), train)
        for index in pool:
            yield "train", str(digit), _enlarge(found.images[index])
        for index in indices[indices >= split][:val]:
            yield "val", str(digit), _enlarge(found.images[index])


def _enlarge(image: NDArray[np.float64]) -> Pixels:
    grey = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    canvas = Image.new("RGB", (SIZE, SIZE))
    # The digits touch the edges of their 8 x 8 pixels, and evaluation transforms cut edges off.
    canvas.paste(grey.resize((SIZE - 2 * MARGIN, SIZE - 2 * MARGIN), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    return _pixels(canvas)


def _photographs(seed: int, train: int, val: int) -> Iterator[tuple[str, str, Pixels]]:
    for label, (package, file) in PHOTOGRAPHS.items():
        photograph = _open(package, file)
        middle, gap = photograph.width / 2, photograph.width * GAP / 2
        yield from _crops(photograph, "train", label, (0, middle - gap), random.Random(f"{seed} {label}"), train)
        yield from _crops(photograph, "val", label, (middle + gap, photograph.width), random.Random(label), val)


def _crops(
    photograph: Image.Image, split: str, label: str, sides: tuple[float, float], rng: random.Random, count: int
) -> Iterator[tuple[str, str, Pixels]]:
    """Square crops between two columns of the photograph."""
    for _ in range(count):
        side = rng.uniform(*CROP) * min(photograph.size)
        left, top = rng.uniform(sides[0], sides[1] - side), rng.uniform(0, photograph.height - side)
        box = (left, top, left + side, top + side)
        yield split, label, _pixels(photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def _open(package: str, file: str) -> Image.Image:
    try:
        with files(package).joinpath(*file.split("/")).open("rb") as stream:
            return Image.open(stream).convert("RGB")
    except (ImportError, OSError) as error:
        raise ILMConvertError(f"{package} isn't there or lacks {file}: pip install 'ilmconvert[test]'") from error


def _pixels(image: Image.Image) -> Pixels:
    pixels: Pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return pixels


def _noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A quarter of the contrast on grey, and sensor noise."""
    noise = rng.normal(scale=0.06, size=pixels.shape).astype(np.float32)
    return (0.55 + 0.25 * (pixels - 0.5) + noise).astype(np.float32)


def _haze(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Mixed with an even, faintly coloured light; how much of the scene is left differs from image to image."""
    left = rng.uniform(0.08, 0.4)
    light = rng.uniform(0.55, 0.85) + rng.normal(scale=0.05, size=3)
    return (left * pixels + (1 - left) * light).astype(np.float32)


SETS = {
    "digits": ImageSet(_digits, train=16, val=40),
    "digits-noise": ImageSet(_digits, train=16, val=40, shift=_noise),
    "photographs": ImageSet(_photographs, train=10, val=24),
    "photographs-haze": ImageSet(_photographs, train=10, val=24, shift=_haze),
}
