"""Accuracy and calibration over batches of logits, and the intervals of shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilmconvert.errors import ILMConvertError

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassCalibrationError

Interval = tuple[float, float]

BINS = 15
TOP_K = 5
Z = 1.959963984540054  # of a 95 % interval


def wilson(hits: int, count: int) -> Interval:
    """Wilson's 95 % interval of a share of ``hits`` in ``count`` (at least 1) independent cases.

    >>> [round(end, 3) for end in wilson(36, 36)]
    [0.904, 1.0]
    """
    share, weight = hits / count, Z * Z / count
    center = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, center - half), min(1.0, center + half)


def paired_difference(gained: int, lost: int, count: int) -> Interval:
    """A 95 % interval of ``(gained - lost) / count`` for ``count`` pairs, of which the others are ties.

    Wald's interval after one more pair was gained and one more lost (Bonett and Price, Journal of Educational and
    Behavioral Statistics 37, 2012): unlike Wald's own, it doesn't shrink to nothing where every pair is a tie.

    >>> [round(end, 3) for end in paired_difference(gained=8, lost=2, count=100)]
    [-0.007, 0.124]
    """
    total = count + 2
    center = (gained - lost) / total
    half = Z * math.sqrt(((gained + lost + 2) / total - center * center) / total)
    return max(-1.0, center - half), min(1.0, center + half)


def top1_class(logits: Tensor) -> Tensor:
    """The class with the largest of (N, classes) logits, (N,); -1 where one of them isn't finite.

    >>> top1_class(torch.tensor([[0.0, 2.0], [math.nan, 1.0]])).tolist()
    [1, -1]
    """
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def same_class(expected: Tensor, found: Tensor) -> Tensor:
    """Whether two networks give each sample the same class: (N,), of what :func:`top1_class` makes of their logits.

    Logits that aren't finite agree with nothing.
    """
    return (expected == found) & (expected >= 0)


class ClassificationMetrics:
    """What :class:`ilmconvert.evaluation.accuracy.Evaluation` reports of the logits that :meth:`add` has seen."""

    count: int
    labelled: int
    not_finite: int

    def __init__(self) -> None:
        self.count = self.labelled = self.not_finite = 0
        self._hits = self._hits5 = self._same = self._other_hits = self._gained = self._lost = 0
        self._loss = 0.0
        self._classes = 0
        self._compared = False
        self._calibration: MulticlassCalibrationError | None = None

    def add(self, logits: Tensor, others: Tensor | None, labels: Tensor) -> None:
        """One batch: logits (N, classes), another model's or None, and labels (N,), -1 where there is none."""
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        classes, known = top1_class(logits), labels >= 0
        finite, right = classes >= 0, (classes == labels) & known
        self.count += len(labels)
        self.labelled += int(known.sum())
        self.not_finite += int((~finite).sum())
        self._classes = logits.shape[1]
        self._hits += int(right.sum())
        if known.any():
            self._add_labelled(logits[known], labels[known], finite[known])
        if others is not None:
            self._add_other(classes, top1_class(others.detach().float().cpu()), labels, right)

    def _add_labelled(self, logits: Tensor, labels: Tensor, finite: Tensor) -> None:
        self._loss += F.cross_entropy(logits.double(), labels, reduction="sum").item()
        if self._classes > TOP_K:
            near = logits.topk(TOP_K, dim=1).indices == labels[:, None]
            self._hits5 += int((near.any(1) & finite).sum())
        if self._calibration is None:
            self._calibration = _calibration_error(self._classes)
        if finite.any():
            self._calibration.update(logits[finite].softmax(1), labels[finite])

    def _add_other(self, classes: Tensor, others: Tensor, labels: Tensor, right: Tensor) -> None:
        self._compared = True
        other_right = (others == labels) & (labels >= 0)
        self._same += int(same_class(others, classes).sum())
        self._other_hits += int(other_right.sum())
        self._gained += int((right & ~other_right).sum())
        self._lost += int((other_right & ~right).sum())

    def summary(self) -> dict[str, Any]:
        """The fields of an ``Evaluation``, but for the speed; at least one image was added."""
        n, some = self.labelled, self.labelled > 0
        finite = self._calibration is not None and self._calibration.update_called
        result: dict[str, Any] = {
            "count": self.count,
            "labelled": n,
            "top1": self._hits / n if some else None,
            "top1_interval": wilson(self._hits, n) if some else None,
            "top5": self._hits5 / n if some and self._classes > TOP_K else None,
            "loss": self._loss / n if some else None,
            "calibration_error": self._calibration.compute().item() if self._calibration and finite else None,
            "not_finite": self.not_finite,
        }
        if self._compared:
            result["agreement"] = self._same / self.count
            result["agreement_interval"] = wilson(self._same, self.count)
            if some:
                result["against_top1"] = self._other_hits / n
                result["difference"] = (self._hits - self._other_hits) / n
                result["difference_interval"] = paired_difference(self._gained, self._lost, n)
        return result


def _calibration_error(classes: int) -> MulticlassCalibrationError:
    try:
        from torchmetrics.classification import MulticlassCalibrationError
    except ImportError as error:
        raise ILMConvertError("labelled images need torchmetrics: pip install 'ilmconvert[finetune]'") from error
    return MulticlassCalibrationError(classes, n_bins=BINS)
