"""Unlabelled pictures of a folder or dataset as batches for calibration."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def picture_batches(
    model: nn.Module, data: str, *, pictures: int, batch_size: int, seed: int, input_size: int | None = None
) -> list[Tensor]:
    """Up to so many training pictures of ``data`` in random order, behind the model's evaluation transform."""
    import torch
    from timm.data import create_transform

    from ilmconvert.finetune.data import open_data, transform_config
    from ilmconvert.finetune.pictures import Pictures
    from ilmconvert.finetune.recipe import get_recipe

    found = open_data(data, unlabelled=True, seed=seed).train
    assert isinstance(found, Pictures)
    recipe = get_recipe("full", **({} if input_size is None else {"input_size": input_size}))
    chosen = random.Random(seed).sample(range(len(found)), min(pictures, len(found)))
    transform = create_transform(**transform_config(model, recipe), is_training=False)
    images = [transform(found[index][0]) for index in chosen]
    return [torch.stack(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
