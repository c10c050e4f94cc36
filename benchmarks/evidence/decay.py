"""Weight decay on the restoring path alone, by how far it takes its gains in a run and not by a coefficient."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.optimizer import Schedule, make_optimizer, parameter_groups


def decayed_groups(network: nn.Module, recipe: Recipe, batches: int, restore_decay: float) -> list[dict[str, Any]]:
    """The library's parameter groups; without a gradient the restoring path ends at ``exp(-restore_decay)`` of itself.

    Args:
        batches: steps of an epoch.

    Raises:
        ILMConvertError: the optimizer isn't AdamW, whose decay alone is apart from the gradient.
    """
    groups = parameter_groups(network, recipe)
    if restore_decay and recipe.opt != "adamw":
        raise ILMConvertError(f"{recipe.opt} mixes weight decay with the gradient; give the arm adamw")
    for group in groups if restore_decay else ():
        if group["kind"] == "restore":
            group["weight_decay"] = restore_decay / (group["lr_scale"] * sum(rates(recipe, batches)))
    return groups


@cache
def rates(recipe: Recipe, batches: int) -> tuple[float, ...]:
    """The learning rate of every step, without factors."""
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "kind": "backbone", "weight_decay": 0.0}
    schedule = Schedule(make_optimizer([group], recipe), recipe, batches)
    return tuple(schedule.apply(step) for step in range(batches * recipe.epochs))
