"""Pictures to train on: folders and timm's datasets, their transforms, and loaders that can be resumed exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ilmconvert.finetune.checks import DataError, check_head, check_readable
from ilmconvert.finetune.fields import RecipeError
from ilmconvert.finetune.pictures import Augmented, EpochSampler, Pictures
from ilmconvert.finetune.sources import open_folder, open_named, split

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ilmconvert.finetune.recipe import Recipe

__all__ = ["Data", "DataError", "loaders", "open_data", "transform_config", "with_transforms"]

_LEAST_VALIDATION_BATCH = 32


@dataclass(frozen=True)
class Data:
    """Training and validation pictures.

    Attributes:
        train: map-style dataset of (picture, label); label -1: unlabelled.
        val: the same for validation, or None.
        class_names: in the order of the labels, where they are known.
        num_classes: None: no labels.
        description: where the pictures come from and how many there are, as JSON values.
        labelled: whether the training pictures have labels.
    """

    train: Dataset[Any]
    val: Dataset[Any] | None = None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    labelled: bool = True


def open_data(
    source: str | Path,
    *,
    val_split: float | str | None = None,
    unlabelled: bool = False,
    num_classes: int | None = None,
    seed: int = 0,
    train_split: str = "train",
    data_dir: str | Path | None = None,
    download: bool = False,
    **dataset_args: Any,
) -> Data:
    """Pictures from a folder or a dataset that timm knows by name.

    Args:
        source: a folder with train/ and val/ (or validation/, test/), each of class folders; one folder of class
            folders; a folder of pictures (unlabelled); or ``torch/NAME`` or ``hfds/NAME``, also ``NAME:ROOT``.
        val_split: the fraction of the training pictures that becomes the validation set, of every class alike; or
            the name of the split or folder that is the validation set.
        unlabelled: ignore all labels. A flat train/ beside a val/ of class folders needs no such word.
        num_classes: outputs of the head that the labels have to match.
        seed: of the choice of validation pictures.
        train_split: name of the split to train on.
        data_dir: where a named dataset lies (timm's ``root``).
        download: let torchvision fetch a missing ``torch/`` dataset.
        **dataset_args: for ``timm.data.create_dataset``, such as ``input_key`` and ``target_key``.

    Raises:
        DataError: no pictures, an empty class folder, an unreadable picture, one class only, classes that differ
            between training and validation or from the head.
    """
    fraction = None if val_split is None or isinstance(val_split, str) else float(val_split)
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"val_split is a fraction between 0 and 1 or the name of a split, not {fraction:g}")
    val_name = val_split if isinstance(val_split, str) else None
    path = Path(source)
    if path.is_dir():
        train, val, names = open_folder(path, train_split, val_name, unlabelled)
    else:
        kwargs = {"root": data_dir, "download": download, **dataset_args}
        train, val, names = open_named(str(source), train_split, val_name, fraction is None, unlabelled, kwargs)
    if fraction is not None:
        if val is not None:
            raise DataError(f"{source} has its own validation pictures; leave out the fraction {fraction:g}")
        train, val = split(train, fraction, seed, names)
    check_readable(train)
    if val is not None:
        check_readable(val)
    description: dict[str, Any] = {"source": str(source), "train": len(train), "val": None if val is None else len(val)}
    description |= {"labelled": train.labelled, "classes": None if names is None else list(names)}
    if fraction is not None:
        description |= {"val_split": fraction, "seed": seed}
    data = Data(train, val, names, None if names is None else len(names), description, train.labelled)
    if num_classes is not None:
        check_head(data, num_classes)
    return data


def transform_config(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """What ``timm.data.create_transform`` takes from the model: input size, interpolation, mean, deviation, crop."""
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    if recipe.input_size is not None:
        config["input_size"] = (config["input_size"][0], recipe.input_size, recipe.input_size)
    if recipe.crop_pct is not None:
        config["crop_pct"] = recipe.crop_pct
    if not hasattr(model, "pretrained_cfg"):
        config["interpolation"] = "bilinear"  # torchvision's
    return config


def with_transforms(data: Data, recipe: Recipe, model: nn.Module) -> Data:
    """The data behind timm's transforms for the model: items are (tensor (C, H, W), label).

    The training set's random choices depend on (seed, epoch, item) only; it has ``set_epoch``.
    """
    config = transform_config(model, recipe)
    train, val = (_train_transform(config, recipe), _create_transform(**config, is_training=False))
    seed = recipe.seed
    wrapped = None if data.val is None else Augmented(_in_channels(data.val, config), val, seed)
    description = {**data.description, "input_size": list(config["input_size"])}
    return replace(
        data, train=Augmented(_in_channels(data.train, config), train, seed), val=wrapped, description=description
    )


def _create_transform(**settings: Any) -> Callable[[Any], Tensor]:
    from timm.data import create_transform

    transform: Callable[[Any], Tensor] = create_transform(**settings)
    return transform


def _train_transform(config: dict[str, Any], recipe: Recipe) -> Callable[[Any], Tensor]:
    return _create_transform(
        **{key: config[key] for key in ("input_size", "interpolation", "mean", "std")},
        is_training=True,
        no_aug=recipe.no_aug,
        train_crop_mode=recipe.train_crop_mode,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.reprob,
        re_mode="pixel",
    )


def _in_channels(items: Dataset[Any], config: dict[str, Any]) -> Dataset[Any]:
    """The pictures in grey for a model of one channel."""
    if config["input_size"][0] == 1 and isinstance(items, Pictures):
        return Pictures(items.source, items.indices, labelled=items.labelled, mode="L")
    return items


def loaders(data: Data, recipe: Recipe, accelerator: Accelerator) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Loaders of global batches, to be prepared by an accelerator that splits batches (``split_batches=True``).

    The order of the training pictures depends on (seed, epoch) only: call ``set_epoch`` of the prepared loader (or of
    ``data.train``) before each epoch. A last batch that isn't full is left out, unless it is the only one.

    Raises:
        RecipeError: the processes can't share a batch evenly.
    """
    processes = accelerator.num_processes
    if recipe.batch_size % processes:
        raise RecipeError(f"batch_size {recipe.batch_size} is for all {processes} processes; use a multiple of that")
    share = recipe.batch_size // processes
    if (recipe.mixup or recipe.cutmix) and share % 2:
        raise RecipeError(f"mixup and cutmix need an even number of pictures in a process, not {share}")
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
