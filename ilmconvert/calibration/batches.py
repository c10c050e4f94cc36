"""The batches of a calibration: what the model takes of them, and which are held out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.errors import CalibrationError
from ilmconvert.surgery.outputs import map_tensors
from ilmconvert.surgery.paused_forward import Inputs


class Part(NamedTuple):
    """Batches, as positional arguments of a model, and how many samples they hold."""

    inputs: list[Inputs]
    samples: int


def prepared(batches: Iterable[Any], device: torch.device) -> list[Inputs]:
    """What a model takes of each batch: the tensor itself, or the first item of a tuple or list.

    >>> [inputs[0].shape for inputs in prepared([torch.ones(2, 3), (torch.ones(1, 3), torch.ones(1))], "cpu")]
    [torch.Size([2, 3]), torch.Size([1, 3])]
    """
    found: list[Inputs] = []
    for batch in batches:
        if isinstance(batch, (tuple, list)) and not batch:
            raise CalibrationError("a batch is empty; give tensors, or tuples whose first item the model takes")
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        found.append((map_tensors(x, lambda t: t.to(device)),))
    if not found:
        raise CalibrationError("there are no batches to calibrate on; give a few tens of images")
    return found


def divide(batches: list[Inputs], holdout: float) -> tuple[Part, Part]:
    """Those to fit on, and the ``holdout`` share of them from the end: whole batches, or samples of a single one."""
    if len(batches) == 1 and isinstance(batches[0][0], Tensor):
        x = batches[0][0]
        held = _share(len(x), holdout, "the one batch has {} sample, too few to hold some out; give more")
        batches = [(x[:-held],), (x[-held:],)]
        return Part(batches[:1], len(x) - held), Part(batches[1:], held)
    held = _share(len(batches), holdout, "{} batch can't be divided to hold some out; give more")
    parts = (batches[:-held], batches[-held:])
    first, second = (Part(part, sum(_length(inputs[0]) for inputs in part)) for part in parts)
    return first, second


def _share(count: int, holdout: float, message: str) -> int:
    if count < 2:
        raise CalibrationError(message.format(count))
    return min(max(round(count * holdout), 1), count - 1)


def _length(x: Any) -> int:
    return len(x) if hasattr(x, "__len__") else 1
