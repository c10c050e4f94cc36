"""What makes two runs the same run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert.finetune.data import Data
from ilmconvert.finetune.prepare import Start, number_of_classes
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.runs import Guide


def describe(
    first: Start,
    data: Data,
    recipe: Recipe,
    guide: Guide,
    teacher: nn.Module | str | Path | None,
    init: str,
) -> dict[str, Any]:
    """Recipe, model and data as JSON values: what ``config.yaml`` holds, and a resumed run has to agree with."""
    model = {
        "name": first.name,
        "num_classes": number_of_classes(first.network),
        "head_replaced": first.head_replaced,
        "converted_here": first.source is not None,
        "init": init if first.source is not None else None,
        "digest": digest(first.source if first.source is not None else first.network),
        "teacher": None if teacher is None or guide.network is None else digest(guide.network),
    }
    return {"recipe": recipe.to_dict(), "model": model, "data": dict(data.description)}


def digest(model: nn.Module) -> str:
    """A SHA-256 over all tensors, by which a resumed run knows that it has the same weights.

    >>> digest(nn.ReLU())[:8]
    'e3b0c442'
    """
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
