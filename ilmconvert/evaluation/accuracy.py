"""Accuracy, calibration and speed of a classifier on labelled or unlabelled images, alone or against another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ilmconvert._constants import shown_by
from ilmconvert.errors import EvaluationError, one_line
from ilmconvert.evaluation.metrics import ClassificationMetrics, Interval
from ilmconvert.evaluation.progress_bar import count_bar
from ilmconvert.surgery.module_state import evaluating

if TYPE_CHECKING:
    from accelerate import Accelerator

Progress = Callable[[int, int | None], None]

AMP_DTYPES: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured. Shares are between 0 and 1; intervals hold 95 %.

    Attributes:
        count: images seen.
        labelled: how many of them have a label; without any, the next five are None.
        top1, top5: share of labelled images whose label is the largest logit, or among the five largest. ``top5``
            is None for five classes or fewer.
        top1_interval: Wilson's interval of ``top1``.
        loss: mean cross entropy, in nats.
        calibration_error: expected calibration error over 15 bins of equal width (Guo et al., ICML 2017).
        images_per_second: of the forward passes alone, over all processes; the first batch isn't timed if there are
            others. None for no image.
        not_finite: images whose logits hold a NaN or an infinity. They count as wrong and agree with nothing.
        agreement: share of all images on which both models have the same largest logit.
        agreement_interval: Wilson's interval of it.
        against_top1: the other model's ``top1``.
        difference: ``top1 - against_top1``.
        difference_interval: the interval of the difference for paired images (Bonett and Price, 2012).
    """

    count: int
    labelled: int
    top1: float | None
    top1_interval: Interval | None
    top5: float | None
    loss: float | None
    calibration_error: float | None
    images_per_second: float | None
    not_finite: int = 0
    agreement: float | None = None
    agreement_interval: Interval | None = None
    against_top1: float | None = None
    difference: float | None = None
    difference_interval: Interval | None = None

    _repr_html_ = shown_by("ilmconvert.report.notebook:evaluation")

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values (intervals as lists)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def evaluate(
    model: nn.Module,
    data: Iterable[Any] | Dataset[Any],
    *,
    against: nn.Module | None = None,
    device: torch.device | str | None = None,
    amp: str = "no",
    batch_size: int = 32,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Run a classifier over images, in evaluation mode and without gradients.

    Neither model's training flags change.

    Args:
        model: maps (N, C, H, W) to logits (N, classes).
        data: a loader of batches ``(images, labels)``, or a dataset of such items. A label of -1 means none.
        against: another model, such as the source of the conversion, run on the same images.
        device: where to run; both models are moved there. None: where ``model`` is.
        amp: "no", "bf16" or "fp16": the type that autocast computes in.
        batch_size, workers: for a dataset; a loader has its own.
        accelerator: of a distributed run. ``data`` is then a loader that it prepared; every process has to call, and
            gets the numbers of all images, none counted twice.
        progress: called after each batch with the images done and their number, None where that isn't known; True
            shows a bar.

    Raises:
        EvaluationError: no image, a label that the model has no logit for, outputs that aren't logits, models with
            different outputs, or a type that the device can't compute in.

    >>> batch = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 0])
    >>> result = evaluate(nn.Identity(), [batch])
    >>> result.count, round(result.top1, 3), round(result.loss, 3)
    (3, 0.667, 0.647)
    """
    where = _device(model, device, accelerator)
    context = _autocast(amp, where)
    loader = _loader(data, batch_size, workers, accelerator)
    total = len(loader.dataset) if isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized) else None
    metrics, clock, seen = ClassificationMetrics(), _Clock(where), 0
    models = [each.to(where) for each in (model, against) if each is not None]
    with count_bar(progress, "images") as told, evaluating(*models), torch.no_grad():
        for images, labels in loader:
            x, y = images.to(where, non_blocking=True), torch.as_tensor(labels).to(where)
            with context:
                logits = clock.run(model, x)
                others = None if against is None else _logits(against(x), x)
            logits, others, y = _gathered(accelerator, logits, others, y)
            _check(logits, others, y)
            metrics.add(logits, others, y)
            seen += len(y)
            if told is not None:
                told(seen, total)
    if not metrics.count:
        raise EvaluationError("there is no image to evaluate on; check the data")
    return Evaluation(**metrics.summary(), images_per_second=clock.rate(accelerator))


class _Clock:
    """Times forward passes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[tuple[int, float]] = []

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        self._wait()
        start = time.perf_counter()
        logits = _logits(model(x), x)
        self._wait()
        self._times.append((len(x), time.perf_counter() - start))
        return logits

    def rate(self, accelerator: Accelerator | None) -> float:
        times = self._times[1:] or self._times
        rate = sum(n for n, _ in times) / sum(seconds for _, seconds in times)
        if accelerator is None:
            return rate
        total: Tensor = accelerator.reduce(torch.tensor(rate, device=self._device), reduction="sum")
        return total.item()

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def _device(model: nn.Module, device: torch.device | str | None, accelerator: Accelerator | None) -> torch.device:
    if accelerator is not None:
        where: torch.device = accelerator.device
        return where
    if device is not None:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            reason = one_line(error)[:200]
            raise EvaluationError(
                f"there is no device {str(device)!r} here ({reason}); use cpu, or leave it out"
            ) from error
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _autocast(amp: str, device: torch.device) -> AbstractContextManager[Any]:
    if amp not in AMP_DTYPES:
        raise EvaluationError(f"unknown amp {amp!r}; use one of {', '.join(AMP_DTYPES)}")
    if amp == "fp16" and device.type == "cpu":
        raise EvaluationError("fp16 is for accelerators; on the CPU use amp bf16 or no")
    dtype = AMP_DTYPES[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _loader(
    data: Iterable[Any] | Dataset[Any], batch_size: int, workers: int, accelerator: Accelerator | None
) -> Iterable[Any]:
    if not isinstance(data, Dataset):
        return data
    if accelerator is not None:
        raise EvaluationError("with an accelerator give a loader that it prepared, not a dataset")
    return DataLoader(data, batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())


def _gathered(
    accelerator: Accelerator | None, logits: Tensor, others: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    if accelerator is None:
        return logits, others, labels
    logits, labels = accelerator.gather_for_metrics((logits, labels))
    return logits, None if others is None else accelerator.gather_for_metrics(others), labels


def _logits(result: Any, x: Tensor) -> Tensor:
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(x) or result.shape[1] < 2:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise EvaluationError(f"the model gives {got} for {len(x)} images, not logits (N, classes); give a classifier")
    return result


def _check(logits: Tensor, others: Tensor | None, labels: Tensor) -> None:
    classes = logits.shape[1]
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(logits):
        raise EvaluationError(f"labels are one class number an image, not {labels.dtype} of {tuple(labels.shape)}")
    if others is not None and others.shape[1] != classes:
        message = f"the model has {classes} classes and the one to compare it with {others.shape[1]}"
        raise EvaluationError(f"{message}; compare models of the same classes")
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        worst = int(labels.max()) if int(labels.max()) >= classes else int(labels.min())
        raise EvaluationError(f"the data have label {worst} and the model classes 0 to {classes - 1}; they don't fit")
