"""Whether a network still learns below its head, or has died."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Less than this part of the gradient's squared length: the head alone learns, and sees the same for every image.
DEAD = 1e-6


def part_below_head(groups: Iterable[Mapping[str, Any]]) -> Tensor | None:
    """The part of the gradient's squared length that isn't the head's, (); None where only one of both has a gradient.

    Nothing is read back from the device.

    Args:
        groups: those of the optimizer, as :func:`ilmconvert.finetune.optimizer.parameter_groups` made them.
    """
    squares: dict[bool, list[Tensor]] = {True: [], False: []}
    for group in groups:
        lengths = [p.grad.float().square().sum() for p in group["params"] if p.grad is not None]
        squares[group["kind"] == "head"] += lengths
    if not squares[True] or not squares[False]:
        return None
    head, below = (torch.stack(squares[kind]).sum() for kind in (True, False))
    part: Tensor = below / (head + below)
    return part
