"""Labelled images as tensors of bytes, and parts of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Labelled images: ``pixels`` (N, 3, H, W) of bytes, ``labels`` (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | list[int]) -> Images:
        """The images of these indices, in their order."""
        return Images(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> Images:
        """The images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """One set: where training images are drawn from, what settings are chosen on, and what is looked at once."""

    train: Images
    val: Images
    test: Images
    num_classes: int


def draw(images: Images, count: int, seed: int) -> Images:
    """Training images of a seed: ``count`` at random, without repetition, or all if there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    return images.subset(torch.randperm(len(images), generator=generator)[:count])


def share(images: Images, seed: int, seeds: int) -> Images:
    """A seed's own test images: an equal part for each of ``seeds`` seeds from 0, all of them together every image."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order.chunk(seeds)[seed])


def smaller(splits: Splits, count: int) -> Splits:
    """The first images of each part, ``count`` at most: for runs that only show that something runs."""
    train, val, test = (
        Images(part.pixels[:count], part.labels[:count]) for part in (splits.train, splits.val, splits.test)
    )
    return Splits(train, val, test, splits.num_classes)
