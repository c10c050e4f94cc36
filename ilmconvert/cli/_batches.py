"""Unlabelled pictures of a folder or dataset as batches for calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def picture_batches(
    model: nn.Module, data: str, *, pictures: int, batch_size: int, seed: int, input_size: int | None = None
) -> list[Tensor]:
    """Up to so many training pictures of ``data`` in random order, behind the model's evaluation transform."""
    import torch

    from ilmconvert.robustness.sources import unit_pictures

    chosen, normalize = unit_pictures(model, data, at_most=pictures, input_size=input_size, seed=seed, training=True)
    return list(normalize(torch.stack(chosen)).split(batch_size))
