"""Means over an epoch, and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ilmconvert.errors import FineTuneError

_EVERY = 10  # batches between two looks at a device that has to be waited for


class Meter:
    """Sums over the batches of an epoch on this process: loss, right answers, labels, batches; and a clock."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        self._sums = torch.zeros(4, dtype=dtype, device=accelerator.device)
        self._images = 0
        self._start = self._before = 0.0

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """A batch: its mean loss, logits (N, classes) and labels (N,), -1 where there is none."""
        known = target >= 0
        right = (logits.argmax(1) == target) & known
        self._sums += torch.stack([t.to(self._sums) for t in (loss, right.sum(), known.sum(), torch.ones_like(loss))])

    def due(self, batch: int, *, last: bool) -> bool:
        """Whether it is time to look at the sums, which on an accelerator waits for it."""
        return last or self._accelerator.device.type == "cpu" or batch % _EVERY == 0

    def gathered(self) -> list[list[float]]:
        """The sums of every process, in the order of their ranks."""
        sums: Tensor = self._accelerator.gather(self._sums[None])
        return sums.tolist()

    def local(self) -> list[list[float]]:
        """The sums of this process, as :meth:`gathered` has them."""
        return [self._sums.tolist()]

    def restore(self, gathered: Sequence[Sequence[float]]) -> None:
        """Take up what :meth:`gathered` gave; with another number of processes the first one takes it all."""
        all_sums = torch.tensor(gathered, dtype=self._sums.dtype)
        if len(gathered) == self._accelerator.num_processes:
            self._sums.copy_(all_sums[self._accelerator.process_index])
        elif gathered and self._accelerator.is_main_process:
            self._sums.copy_(all_sums.sum(0))

    def reset(self) -> None:
        """For the next epoch."""
        self._sums.zero_()

    def start(self, seconds: float) -> None:
        """Start the clock, which showed ``seconds`` before."""
        self._start, self._before, self._images = time.perf_counter(), seconds, 0

    def tick(self, images: int) -> float:
        """Another batch of so many images on this process; what the clock shows."""
        self._images += images * self._accelerator.num_processes
        return self._before + time.perf_counter() - self._start

    @property
    def speed(self) -> float | None:
        """Images a second over all processes, since the clock was started."""
        passed = time.perf_counter() - self._start
        return self._images / passed if self._images else None


def means(sums: Sequence[Sequence[float]], step: int) -> tuple[float, float | None]:
    """Mean loss and accuracy (None without labels) at optimizer step ``step``.

    Args:
        sums: what :meth:`ilmconvert.finetune.meter.Meter.gathered` returns.
        step: for the message.

    Raises:
        FineTuneError: the loss isn't finite.

    >>> means([[3.0, 1.0, 4.0, 2.0], [1.0, 2.0, 4.0, 2.0]], step=9)
    (1.0, 0.375)
    """
    loss, right, known, batches = (math.fsum(column) for column in zip(*sums, strict=True))
    if not math.isfinite(loss):
        cure = "lower the learning rate, warm up (warmup_epochs) or clip gradients (clip_grad)"
        raise FineTuneError(f"the loss is {loss} by step {step}; {cure}")
    return loss / batches, right / known if known else None
