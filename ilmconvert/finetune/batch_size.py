"""The largest batch that fits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from ilmconvert.finetune.devices import on_device, process
from ilmconvert.finetune.networks import set_trainable, training_mode
from ilmconvert.finetune.optimizer import make_optimizer, parameter_groups
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.models.head import number_of_classes

_SHARE = 0.5  # of the free memory on a CPU, where asking for too much stops the whole machine
_LARGEST = 4096


def find_batch_size(
    model: nn.Module,
    recipe: Recipe,
    input_size: tuple[int, int, int],
    *,
    device: torch.device | str | None = None,
    largest: int = _LARGEST,
    progress: Callable[[str], None] | None = None,
) -> int:
    """The largest power of two of images that a process can train on at once; at least 1.

    On an accelerator batches are doubled until one doesn't fit. On a CPU the activations of one image are counted,
    and the batch is what fits into half of the memory that is free. Distillation's teacher isn't counted.

    Args:
        model: isn't changed.
        recipe: what trains, the optimizer and the precision.
        input_size: channels, height, width.
        device: None: where a run would be.
        largest: where to stop.
        progress: told what is being tried.

    >>> find_batch_size(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), Recipe(), (3, 4, 4), largest=8)
    8
    """
    say = progress or (lambda text: None)
    where = process().device if device is None else torch.device(device)
    recipe = on_device(recipe, where.type)
    network = copy.deepcopy(model).to(where)
    set_trainable(network, replace(recipe, anneal="none", anneal_to=0.0), with_head=True)
    training_mode(network, freeze_batch_norm=recipe.freeze_batch_norm)
    if where.type == "cpu":
        say("measuring what an image needs")
        each = _bytes_of_activations(network, input_size, recipe)
        return _power_of_two(min(largest, int(psutil.virtual_memory().available * _SHARE / max(each, 1))))
    optimizer = make_optimizer(parameter_groups(network, recipe), recipe)
    size = 1
    while size * 2 <= largest:
        say(f"trying {size * 2} images on {where}")
        if not _fits(network, optimizer, size * 2, input_size, recipe):
            break
        size *= 2
    return size


def _fits(
    network: nn.Module, optimizer: torch.optim.Optimizer, size: int, shape: tuple[int, int, int], recipe: Recipe
) -> bool:
    try:
        _forward(network, size, shape, recipe).backward()
        optimizer.step()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        optimizer.zero_grad()
        clear_device_cache()
    return True


def _forward(network: nn.Module, size: int, shape: tuple[int, int, int], recipe: Recipe) -> Tensor:
    like = next(network.parameters())
    x = torch.zeros(size, *shape, device=like.device, dtype=like.dtype)
    target = torch.zeros(size, dtype=torch.long, device=like.device)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast(like.device.type, kinds.get(recipe.amp), enabled=recipe.amp in kinds):
        logits = network(x)
    return nn.functional.cross_entropy(logits.float(), target % (number_of_classes(network) or 1))


def _bytes_of_activations(network: nn.Module, shape: tuple[int, int, int], recipe: Recipe) -> int:
    """Bytes that autograd keeps for one image: what two images need over one, so that weights don't count."""

    def kept(size: int) -> int:
        storages: dict[int, int] = {}
        alive: list[Any] = []

        def note(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            alive.append(t)  # or its address would be used again
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            _forward(network, size, shape, recipe)
        return sum(storages.values())

    one, two = kept(1), kept(2)
    return two - one


def _power_of_two(number: int) -> int:
    return 1 << max(number, 1).bit_length() - 1
