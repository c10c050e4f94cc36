"""Loaders that can be resumed exactly, and the data behind a recipe's transforms."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ilmconvert.data.dataset import Augmented, EpochSampler
from ilmconvert.data.open_data import Data
from ilmconvert.data.trained_images import described
from ilmconvert.data.transforms import create_transform, for_evaluation, in_channels, transform_config
from ilmconvert.errors import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ilmconvert.finetune.recipe import Recipe


_LEAST_VALIDATION_BATCH = 32


def with_transforms(data: Data, recipe: Recipe, model: nn.Module) -> Data:
    """The data behind timm's transforms for the model: items are (tensor (C, H, W), label).

    The training set's random choices depend on (seed, epoch, item) only; it has ``set_epoch``.
    """
    config = transform_config(model, recipe.input_size, recipe.crop_pct)
    train = Augmented(in_channels(data.train, config), _train_transform(config, recipe), recipe.seed)
    val = None if data.val is None else for_evaluation(data.val, config)
    return replace(data, train=train, val=val, description={**data.description, **described(config)})


def _train_transform(config: dict[str, Any], recipe: Recipe) -> Callable[[Any], Tensor]:
    try:
        return _augmenting(config, recipe)
    except Exception as error:  # timm asserts, and converts what it doesn't expect
        if recipe.auto_augment is None:
            raise
        raise RecipeError(
            f"auto_augment {recipe.auto_augment!r} is no policy of timm; write one such as rand-m9-mstd0.5, "
            "augmix-m5-w4-d2 or original"
        ) from error


def _augmenting(config: dict[str, Any], recipe: Recipe) -> Callable[[Any], Tensor]:
    return create_transform(
        **{key: config[key] for key in ("input_size", "interpolation", "mean", "std")},
        is_training=True,
        no_aug=recipe.no_aug,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.reprob,
        re_mode="pixel",
    )


def loaders(data: Data, recipe: Recipe, accelerator: Accelerator) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Loaders of global batches, to be prepared by an accelerator that splits batches (``split_batches=True``).

    The order of the training images depends on (seed, epoch) only: call ``set_epoch`` of the prepared loader (or of
    ``data.train``) before each epoch. A last batch that isn't full is left out, unless it is the only one.

    Raises:
        RecipeError: the processes can't share a batch evenly.
    """
    processes = accelerator.num_processes
    if recipe.batch_size % processes:
        raise RecipeError(f"batch_size {recipe.batch_size} is for all {processes} processes; use a multiple of that")
    share = recipe.batch_size // processes
    if (recipe.mixup or recipe.cutmix) and share % 2:
        raise RecipeError(f"mixup and cutmix need an even number of images in a process, not {share}")
    train = data.train if isinstance(data.train, Augmented) else Augmented(data.train, None, recipe.seed)
    common: dict[str, Any] = {
        "num_workers": (workers := min(recipe.workers, _cores())),
        "persistent_workers": workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
    }
    drop_last = len(train) > recipe.batch_size
    train_loader: DataLoader[Any] = DataLoader(
        train, recipe.batch_size, sampler=EpochSampler(train), drop_last=drop_last, generator=_generator(), **common
    )
    if data.val is None:
        return train_loader, None
    size = recipe.validation_batch_size or max(recipe.batch_size, _LEAST_VALIDATION_BATCH)
    size = -(-size // processes) * processes
    return train_loader, DataLoader(data.val, size, generator=_generator(), **common)


def _generator() -> torch.Generator:
    """For a loader: without one, each epoch takes a number from the global generator."""
    return torch.Generator().manual_seed(0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
