"""The images on which two classifiers differ most."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

THUMBNAIL = 112


@dataclass(frozen=True)
class ImageFidelity:
    """One image; classes are indices of logits, probabilities lie between 0 and 1.

    Attributes:
        index: number of the image in the order of the batches, from 0.
        kl: KL(source || converted) in nats; NaN where one of them isn't finite.
        largest_error: largest absolute difference of the logits.
        source_class, source_probability: the source's first class.
        converted_class, converted_probability: the converted model's.
        label: the true class, or None.
    """

    index: int
    kl: float
    largest_error: float
    source_class: int
    source_probability: float
    converted_class: int
    converted_probability: float
    label: int | None

    @property
    def agrees(self) -> bool:
        """Whether both models have the same first class."""
        return self.source_class == self.converted_class and self.kl == self.kl


class WorstImages:
    """Keeps the worst ``count`` images: those whose first class differs, then those with the largest KL.

    Of each also a small copy of what the networks saw, where that is an image.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[tuple[bool, float], int, ImageFidelity, Tensor | None]] = []
        self._seen = 0

    def add(self, expected: Tensor, found: Tensor, kl: Tensor, labels: Tensor, batch: object) -> None:
        """Logits (N, classes) of source and converted, KL (N,), labels (N,) with -1 for none, and the input."""
        errors = (found - expected).abs().amax(1).tolist()
        (p, a), (q, b) = (t.softmax(1).max(1) for t in (expected, found))
        columns = (kl.tolist(), errors, a.tolist(), p.tolist(), b.tolist(), q.tolist(), labels.tolist())
        for i, (one_kl, error, first, share, other, other_share, label) in enumerate(zip(*columns, strict=True)):
            known = None if label < 0 else label
            image = ImageFidelity(self._seen + i, one_kl, error, first, share, other, other_share, known)
            self._offer(image, batch, i)
        self._seen += len(labels)

    def _offer(self, image: ImageFidelity, batch: object, row: int) -> None:
        badness = (not image.agrees, image.kl if image.kl == image.kl else float("inf"))
        # earlier images win ties
        order = (badness, -image.index)
        if len(self._heap) >= self._count:
            if not self._heap or order <= self._heap[0][:2]:
                return
            heapq.heappop(self._heap)
        heapq.heappush(self._heap, (*order, image, _thumbnail(batch, row)))

    def results(self) -> list[tuple[ImageFidelity, Tensor | None]]:
        """The worst first, with the small copies (C, H, W) as the networks saw them (normalised)."""
        ordered = sorted(self._heap, key=lambda item: item[:2], reverse=True)
        return [(image, thumbnail) for _, _, image, thumbnail in ordered]


def _thumbnail(batch: object, row: int) -> Tensor | None:
    if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] not in (1, 3):
        return None
    image = batch[row : row + 1].detach().float().cpu()
    height, width = image.shape[-2:]
    shrink = THUMBNAIL / max(height, width)
    if shrink < 1:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
    return torch.clone(image[0])
