"""Reference values of the restoring path from the pictures of a run, before it starts."""

from __future__ import annotations

import random

import torch
from torch import nn

from ilmconvert.calibration.references import update_references
from ilmconvert.finetune.data import Data
from ilmconvert.finetune.recipe import Recipe

_BATCH = 16


def take_references(network: nn.Module, data: Data, recipe: Recipe) -> None:
    """Apply :func:`ilmconvert.calibration.update_references` with as many training pictures as the recipe says.

    The pictures depend on the recipe's seed only, so that every process, and a resumed run, takes the same.
    """
    count = len(data.train)  # type: ignore[arg-type]
    chosen = random.Random(recipe.seed).sample(range(count), min(recipe.reference_pictures, count))
    if chosen:
        pictures = [data.train[index][0] for index in chosen]
        update_references(network, [torch.stack(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)])
