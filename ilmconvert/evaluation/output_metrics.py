"""How far the outputs of two models are apart, over batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ilmconvert.errors import ModelError
from ilmconvert.evaluation.outputs import is_logits, relative_error
from ilmconvert.evaluation.worst_images import WorstImages

TOP_K = 5


class OutputSums:
    """Counts and sums over batches of outputs; :meth:`summary` has the fields of ``Fidelity``."""

    def __init__(self, worst: int) -> None:
        from ilmconvert.evaluation.metrics import Tally

        self.images: WorstImages = WorstImages(worst)
        self._tally = Tally()
        self._largest = self._scale = self._error = self._kl = self._largest_kl = 0.0
        self._elements = self._near = self._count = 0
        self._classes: int | None = None

    def add(self, expected: list[Tensor], found: list[Tensor], labels: Tensor, batch: object) -> None:
        """The outputs of the source and of the converted model, labels (N,) with -1 for none, and the input."""
        if [t.shape for t in expected] != [t.shape for t in found]:
            shapes = " and ".join(str([tuple(t.shape) for t in side]) for side in (expected, found))
            raise ModelError(
                f"the models give outputs of different shapes, {shapes}; give the model that was converted"
            )
        self._count += len(labels)
        for a, b in zip(expected, found, strict=True):
            if a.numel():
                self._add_error(a.double(), b.to(a.device).double())
        if is_logits(expected):
            logits = expected[0].detach().cpu().float(), found[0].detach().cpu().float()
            self._add_logits(*logits, labels.cpu(), batch)

    def _add_error(self, a: Tensor, b: Tensor) -> None:
        error = (b - a).abs()
        self._error += error.sum().item()
        self._elements += a.numel()
        self._largest = _max(self._largest, error.max().item())
        self._scale = _max(self._scale, a.abs().max().item())

    def _add_logits(self, expected: Tensor, found: Tensor, labels: Tensor, batch: object) -> None:
        self._classes = expected.shape[1]
        self._tally.add(found, expected, labels)
        p, q = (t.double().log_softmax(1) for t in (expected, found))
        # rounding can make it negative
        kl = (p.exp() * (p - q)).sum(1).clamp(min=0)
        self._kl += kl.sum().item()
        self._largest_kl = _max(self._largest_kl, kl.max().item())
        if self._classes > TOP_K:
            near = (found.topk(TOP_K, 1).indices == expected.argmax(1, keepdim=True)).any(1)
            self._near += int((near & found.isfinite().all(1) & expected.isfinite().all(1)).sum())
        self.images.add(expected, found, kl, labels, batch)

    def summary(self) -> dict[str, Any]:
        """What was found; raises a ModelError where nothing was added."""
        if not self._count:
            raise ModelError("there is no image to compare the models on; check the data")
        found: dict[str, Any] = {
            "count": self._count,
            "classes": self._classes,
            "largest_error": self._largest,
            "mean_error": self._error / self._elements if self._elements else 0.0,
            "relative_error": relative_error(self._largest, self._scale),
            "largest_output": self._scale,
        }
        if self._classes is not None:
            tally = self._tally.summary()
            found |= {
                "top1_agreement": tally["agreement"],
                "top1_interval": tally["agreement_interval"],
                "top5_agreement": self._near / self._count if self._classes > TOP_K else None,
                "kl": self._kl / self._count,
                "largest_kl": self._largest_kl,
                "not_finite": tally["not_finite"],
                "labelled": tally["labelled"],
                "converted_top1": tally["top1"],
                "converted_top1_interval": tally["top1_interval"],
                "source_top1": tally.get("against_top1"),
                "difference_interval": tally.get("difference_interval"),
            }
        elif not math.isfinite(self._largest):
            found["not_finite"] = self._count
        return found


def split_batch(batch: Any, count: int | None = None) -> tuple[tuple[Any, ...], Tensor]:
    """The positional inputs in a batch, and its labels (-1 where there are none).

    A tensor is the only input. ``(images, labels)`` with labels of shape (N,) and an integer type is what loaders
    yield. Any other tuple holds the inputs, as :func:`ilmconvert.data.example_inputs.probe_batch` makes them.

    >>> inputs, labels = split_batch((torch.ones(2, 3), torch.tensor([0, 1])))
    >>> len(inputs), labels.tolist()
    (1, [0, 1])
    """
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, (tuple, list)) or not batch:
        raise ModelError(f"a batch is a tensor, (images, labels) or a tuple of inputs, not {type(batch).__name__}")
    labelled = len(batch) == 2 and isinstance(batch[1], Tensor) and batch[1].ndim == 1
    if labelled and not batch[1].is_floating_point():
        return (batch[0],), batch[1]
    return tuple(batch), torch.full((len(batch[0]),), -1)


def _max(so_far: float, value: float) -> float:
    """The larger one; NaN if either is."""
    return so_far if so_far != so_far else (value if value != value else max(so_far, value))
