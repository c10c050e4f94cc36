"""Labelled images as map-style datasets, and augmentation whose random choices depend on nothing but the item."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ilmconvert.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

UNLABELLED = -1


class ImageDataset(Dataset[tuple[Any, int]]):
    """Items (PIL image, label) of a dataset that timm or torchvision made, or of some of its indices.

    timm's own reading replaces an image that can't be read by the next one; here that is an error.

    Args:
        source: a timm ``ImageDataset`` (its reader is used) or a dataset of (image, label).
        indices: those that count; None: all.
        labelled: False gives every item the label -1.
        mode: of the PIL images.
    """

    source: Any
    indices: Sequence[int]
    labelled: bool
    mode: str

    def __init__(
        self, source: Any, indices: Sequence[int] | None = None, *, labelled: bool = True, mode: str = "RGB"
    ) -> None:
        self.source, self.labelled, self.mode = source, labelled, mode
        self.indices = range(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        place = self.indices[index]
        try:
            image, label = self._read(place)
        except Exception as error:  # PIL raises about anything for a damaged image
            reason = one_line(error) or type(error).__name__
            raise DataError(
                f"can't read the image {self.name(index)} ({reason}); remove or replace it, or leave out such images "
                "with --skip-corrupt (skip_corrupt=True)"
            ) from error
        return image, self._label(label, index) if self.labelled else UNLABELLED

    def can_read(self, index: int) -> bool:
        """Whether the image of an item can be read."""
        try:
            self._read(self.indices[index])
        except Exception:  # see above
            return False
        return True

    def _label(self, label: Any, index: int) -> int:
        try:
            return int(label)
        except (TypeError, ValueError) as error:
            raise DataError(f"the label of {self.name(index)} is {label!r}, not the number of a class") from error

    def _read(self, place: int) -> tuple[Image, Any]:
        from PIL import Image

        reader = getattr(self.source, "reader", None)
        if reader is None:
            image, label = self.source[place]
            return image.convert(self.mode), label
        stream, label = reader[place][:2]
        with stream, Image.open(stream) as opened:
            return opened.convert(self.mode), label

    def name(self, index: int) -> str:
        """The file of an item, or its number where it comes from no file."""
        if hasattr(self.source, "filename"):
            return str(self.source.filename(self.indices[index], absolute=True))
        return f"number {self.indices[index]}"

    def subset(self, indices: Sequence[int]) -> ImageDataset:
        """Some of these items, by their numbers here."""
        chosen = [self.indices[i] for i in indices]
        return ImageDataset(self.source, chosen, labelled=self.labelled, mode=self.mode)


class Augmented(Dataset[tuple[Any, int]]):
    """A dataset behind a transform whose random choices depend on (seed, epoch, index) only.

    It makes no difference which process or worker asks for an item, nor what came before; the random states of
    Python, NumPy and torch stay as they were. An index may be (epoch, index), as :class:`EpochSampler` yields it:
    then workers need not be told of the epoch.

    Args:
        items: a map-style dataset of (image, label).
        transform: of the image; None: as it is.
        seed: of the random choices.
    """

    items: Dataset[Any]
    transform: Callable[[Any], Any] | None
    seed: int
    epoch: int

    def __init__(self, items: Dataset[Any], transform: Callable[[Any], Any] | None, seed: int) -> None:
        self.items, self.transform, self.seed = items, transform, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Items asked for by a plain index are those of this epoch; so is the next order of the sampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Any, int]:
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        with seeded(self.seed, epoch, index):
            image, label = self.items[index]
            return image if self.transform is None else self.transform(image), label


class EpochSampler(Sampler[tuple[int, int]]):
    """All of (epoch, index) in an order that depends on (seed, epoch) only; the epoch is the dataset's.

    >>> data = Augmented([(0, 0), (1, 0), (2, 0)], None, seed=0)
    >>> data.set_epoch(4)
    >>> sorted(EpochSampler(data))
    [(4, 0), (4, 1), (4, 2)]
    """

    def __init__(self, dataset: Augmented) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next order."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.dataset.epoch
        generator = torch.Generator().manual_seed(_mixed(self.dataset.seed, epoch)[0])
        for index in torch.randperm(len(self), generator=generator, device="cpu").tolist():
            yield epoch, index


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Random choices of Python, NumPy and torch (CPU) that depend on the numbers only; their states come back.

    >>> with seeded(1, 2):
    ...     first = random.random(), np.random.rand(), torch.rand(())
    >>> with seeded(1, 2):
    ...     first == (random.random(), np.random.rand(), torch.rand(()))
    True
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    python, numpy, own = _mixed(*numbers)
    random.seed(python)
    np.random.seed(numpy % 2**32)
    torch.default_generator.manual_seed(own)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _mixed(*numbers: int) -> tuple[int, int, int]:
    """Three seeds from any numbers, as different for near ones as for far ones."""
    a, b, c = np.random.SeedSequence([*numbers]).generate_state(3, np.uint64)
    return int(a) >> 1, int(b) >> 1, int(c) >> 1


def labels_of(images: ImageDataset) -> Tensor:
    """The labels of all items, (N,), without reading images where the dataset knows them."""
    source = images.source
    reader: Any = getattr(source, "reader", None)
    if not images.labelled:
        return torch.full((len(images),), UNLABELLED)
    if hasattr(reader, "samples"):
        known = [label for _, label in reader.samples]
    elif hasattr(reader, "iter_targets"):
        known = list(reader.iter_targets())
    elif hasattr(source, "targets"):
        known = source.targets
    else:
        return torch.tensor([images[i][1] for i in range(len(images))])
    return torch.as_tensor(known)[torch.tensor(list(images.indices), device="cpu")]
