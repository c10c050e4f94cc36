"""Images of a folder, each of the class whose folder it lies in, however deep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key as _natural_key


class ClassFolders(Reader):  # type: ignore[misc]
    """A reader of timm: the image files of a folder, with their labels.

    timm's own names a class by the folder that holds the image; here it is the first folder below ``root``, as in
    torchvision's ``ImageFolder``, so that ``cat/a/1.png`` and ``cat/b/2.png`` are both of the class cat.

    Args:
        root: the folder.
        samples: files in it, each with its label.
    """

    samples: list[tuple[str, int]]

    def __init__(self, root: Path, samples: Sequence[tuple[Path, int]]) -> None:
        super().__init__()
        self.root = root
        self.samples = [(str(path), label) for path, label in samples]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        return open(path, "rb"), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = Path(self.samples[index][0])
        if basename:
            return path.name
        return str(path if absolute else path.relative_to(self.root))


def images_of(folder: Path, endings: Sequence[str]) -> list[Path]:
    """All files whose names end so, of the folders below ``folder`` that aren't hidden, in natural order."""
    from timm.data.readers.reader_image_folder import find_images_and_targets

    found = [Path(file) for file, _ in find_images_and_targets(str(folder), types=endings)[0]]
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def folder_of(file: Path, root: Path) -> str:
    """The first folder on the way from ``root`` to a file; "" for a file in ``root`` itself.

    >>> folder_of(Path("pets/cat/a/1.png"), Path("pets"))
    'cat'
    """
    return next(iter(file.relative_to(root).parts[:-1]), "")


def natural_key(name: str) -> list[object]:
    """The key of timm's order, in which 10 comes after 9."""
    return list(_natural_key(name))
