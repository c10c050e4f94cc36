"""How far the outputs of two models are apart, over batches of images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ilmconvert.errors import ModelError
from ilmconvert.evaluation.difference import OutputComparison
from ilmconvert.evaluation.metrics import TOP_K, ClassificationMetrics, top1_class
from ilmconvert.evaluation.worst_images import WorstImages


class OutputSums:
    """Counts and sums over batches of outputs; :meth:`summary` has the fields of ``Fidelity``."""

    def __init__(self, worst: int) -> None:
        self.images: WorstImages = WorstImages(worst)
        self._compared, self._metrics = OutputComparison(), ClassificationMetrics()
        self._near = self._count = 0

    def add(self, expected: list[Tensor], found: list[Tensor], labels: Tensor, batch: object) -> None:
        """The outputs of the source and of the converted model, labels (N,) with -1 for none, and the input."""
        if [t.shape for t in expected] != [t.shape for t in found]:
            shapes = " and ".join(str([tuple(t.shape) for t in side]) for side in (expected, found))
            raise ModelError(
                f"the models give outputs of different shapes, {shapes}; give the model that was converted"
            )
        self._count += len(labels)
        kl = self._compared.add(expected, found)
        if kl is not None:
            a, b, labels = expected[0].detach().cpu().float(), found[0].detach().cpu().float(), labels.cpu()
            self._metrics.add(b, a, labels)
            if a.shape[1] > TOP_K:
                near = (b.topk(TOP_K, 1).indices == top1_class(a)[:, None]).any(1)
                self._near += int((near & b.isfinite().all(1)).sum())
            self.images.add(a, b, kl, labels, batch)

    def summary(self) -> dict[str, Any]:
        """What was found; raises a ModelError where nothing was added."""
        if not self._count:
            raise ModelError("there is no image to compare the models on; check the data")
        compared, difference = self._compared, self._compared.difference
        found: dict[str, Any] = {
            "count": self._count,
            "classes": compared.classes,
            "largest_error": difference.largest,
            "mean_error": difference.mean,
            "relative_error": difference.relative,
            "largest_output": difference.scale,
        }
        if compared.classes is not None:
            metrics = self._metrics.summary()
            found |= {
                "top1_agreement": compared.agreement,
                "top1_interval": compared.interval,
                "top5_agreement": self._near / self._count if compared.classes > TOP_K else None,
                "kl": compared.kl,
                "largest_kl": compared.largest_kl,
                "not_finite": metrics["not_finite"],
                "labelled": metrics["labelled"],
                "converted_top1": metrics["top1"],
                "converted_top1_interval": metrics["top1_interval"],
                "source_top1": metrics.get("against_top1"),
                "difference_interval": metrics.get("difference_interval"),
            }
        elif not math.isfinite(difference.largest):
            found["not_finite"] = self._count
        return found


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Tensor]:
    """The positional inputs in a batch, and its labels (-1 where there are none).

    A tensor is the only input. ``(images, labels)`` with labels of shape (N,) and an integer type is what loaders
    yield. Any other tuple holds the inputs, as :func:`ilmconvert.data.example_inputs.example_inputs` makes them.

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
