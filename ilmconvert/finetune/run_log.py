"""What a run says on the library's logger: how it begins, and a line an epoch.

The command line shows these lines. In Python ``logging.basicConfig(level=logging.INFO)`` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ilmconvert.finetune.dead import DEAD
from ilmconvert.finetune.recipe import Recipe

logger = logging.getLogger(__name__)
#: Images of a smaller standard deviation are flat for a pretrained network, which has seen about 1.
_FLAT = 0.3


def warn_of_flat_images(std: float) -> None:
    """Say so if images are standardised to a deviation of their own that is far below what networks have seen."""
    if std < _FLAT:
        logger.warning(
            "each image is standardised to %.2g, the mean deviation of the training images, and pretrained networks "
            "have seen about 1; for images in low light --input-std 1 (input_std) was the better one",
            std,
        )


def say_start(name: str, model: str, recipe: Recipe, batches: int, step: int, accelerator: Accelerator) -> None:
    """A run begins, or goes on after optimizer step ``step``; it has ``batches`` an epoch."""
    processes = accelerator.num_processes
    logger.info(
        "%s%s, recipe %s: %s of %s of %d images on %s%s%s",
        f"{name}: " if name else "",
        model,
        recipe.name,
        counted(recipe.epochs, "epoch"),
        counted(batches, "batch", "batches"),
        recipe.batch_size,
        accelerator.device,
        f" in {processes} processes" if processes > 1 else "",
        f"; goes on after step {step}" if step else "",
    )


def counted(number: int, one: str, several: str = "") -> str:
    """A number of things.

    >>> counted(1, "epoch"), counted(2, "batch", "batches")
    ('1 epoch', '2 batches')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


class EpochLog:
    """A line for every epoch that this process trains, with the time left at the speed so far, validation included.

    Args:
        name: "" for the run itself, else that of the baseline.
        done: epochs that were done before this process began.
        epochs: how many there are.
    """

    def __init__(self, name: str, done: int, epochs: int) -> None:
        self._name, self._done, self._epochs = name, done, epochs
        self._start = time.perf_counter()
        self._said_dead = False

    def say(self, row: Mapping[str, Any], *, best: bool) -> None:
        """An epoch is over.

        Args:
            row: its line of ``metrics.csv``.
            best: whether it is the best so far.
        """
        epoch = row["epoch"]
        passed = time.perf_counter() - self._start
        left = passed / (epoch - self._done) * (self._epochs - epoch)
        logger.info("%s", epoch_text(row, self._epochs, left, name=self._name, best=best))

    def warn_of_death(self, below_head: Tensor | None) -> None:
        """Say once if the network below the head has died.

        Args:
            below_head: see :func:`ilmconvert.finetune.dead.part_below_head`.
        """
        if below_head is None or self._said_dead or not below_head < DEAD:
            return
        self._said_dead = True
        logger.warning(
            "%sonly the head still has a gradient: the network below it has died and gives the same for every image; "
            "start again with a lower learning rate (lr), a longer warm-up (warmup_epochs) or clipped gradients "
            "(clip_grad)",
            f"{self._name}: " if self._name else "",
        )


def epoch_text(row: Mapping[str, Any], epochs: int, left: float, *, name: str = "", best: bool = False) -> str:
    """A finished epoch in one line; ``left`` is in seconds.

    >>> row = {"epoch": 2, "train_loss": 0.51, "train_top1": 0.75, "val_loss": 0.48, "val_top1": 0.8}
    >>> print(epoch_text({**row, "images_per_second": 123.4}, 10, 75.2, best=True))
    epoch 2/10: loss 0.510, top-1 75.0 %, val loss 0.480, val top-1 80.0 % (best), 123 img/s, 0:01:15 left
    """
    parts = [f"loss {row['train_loss']:.3f}"]
    if row.get("train_top1") is not None:
        parts.append(f"top-1 {100 * row['train_top1']:.1f} %")
    if row.get("val_loss") is not None:
        parts.append(f"val loss {row['val_loss']:.3f}")
    named = (("val_top1", "val top-1"), ("val_agreement", "agreement with the teacher"))
    parts += [f"{text} {100 * row[key]:.1f} %" for key, text in named if row.get(key) is not None]
    if best:
        parts[-1] += " (best)"
    if row.get("images_per_second") is not None:
        speed = row["images_per_second"]
        parts.append(f"{speed:.{0 if speed >= 10 else 1}f} img/s")
    if row["epoch"] < epochs:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return f"{name + ': ' if name else ''}epoch {row['epoch']}/{epochs}: {', '.join(parts)}"
