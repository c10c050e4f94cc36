"""Images that can't be read: found early, and left out where that is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ilmconvert.data.dataset import ImageDataset
from ilmconvert.data.folders import some
from ilmconvert.errors import DataError

_VERIFIED = 32
_AT_A_TIME = 1024


def check_readable(images: ImageDataset) -> None:
    """Read a few images, evenly spread, to find damage early; each is checked again when it is used.

    Raises:
        DataError: names the file.
    """
    count = min(len(images), _VERIFIED)
    for i in range(count):
        images[i * len(images) // count]


def split_readable(images: ImageDataset) -> tuple[ImageDataset, list[str]]:
    """The images that can be read, each of which is read once, and the names of the others.

    Raises:
        DataError: no image can be read.
    """
    found: list[bool] = []
    with ThreadPoolExecutor() as pool:  # decoding frees the interpreter
        for start in range(0, len(images), _AT_A_TIME):
            found += pool.map(images.can_read, range(start, min(start + _AT_A_TIME, len(images))))
    others = [images.name(i) for i, readable in enumerate(found) if not readable]
    if len(others) == len(images):
        raise DataError(f"none of the {len(images)} images can be read, first {others[0]}; give others")
    return images.subset([i for i, readable in enumerate(found) if readable]) if others else images, others


def below(name: str, source: str | Path) -> str:
    """The file as it is called below the folder that was named.

    >>> below("photos/cat/1.png", "photos")
    'cat/1.png'
    """
    path, folder = Path(name).absolute(), Path(source).absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else name


def unreadable_text(names: list[str]) -> str:
    """What was left out, in words.

    >>> unreadable_text(["cat/1.png"])
    "1 image that can't be read: cat/1.png"
    """
    images = "image" if len(names) == 1 else "images"
    return f"{len(names)} {images} that can't be read: {some(names)}"
