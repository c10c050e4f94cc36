"""From a folder of images to what a model takes: size, crop, interpolation, mean and standard deviation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ilmconvert.data.dataset import Augmented, ImageDataset
from ilmconvert.data.open_data import Data, open_data
from ilmconvert.data.policies import keep_a_bit
from ilmconvert.data.trained_images import trained_transform

#: From an image in [0, 1], or a batch of them, to a model's input.
Normalize = Callable[[Tensor], Tensor]


def transform_config(model: nn.Module, input_size: int | None = None, crop_pct: float | None = None) -> dict[str, Any]:
    """What ``timm.data.create_transform`` takes from the model: input size, interpolation, mean, deviation, crop.

    Of a fine-tuned network they are those that it was trained with.

    Args:
        model: of timm, torchvision or any other kind.
        input_size: height and width in place of the model's own.
        crop_pct: the share of an image's side that a centre crop keeps, in place of the model's own.
    """
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    if not hasattr(model, "pretrained_cfg"):
        config["interpolation"] = "bilinear"  # torchvision's
    config |= trained_transform(model)
    if input_size is not None:
        config["input_size"] = (config["input_size"][0], input_size, input_size)
    if crop_pct is not None:
        config["crop_pct"] = crop_pct
    return config


def transform_text(config: dict[str, Any]) -> str:
    """A :func:`transform_config` in words.

    >>> transform_text({"input_size": (3, 96, 96), "mean": (0.5,), "std": (0.5,), "crop_pct": 0.9})
    '3 x 96 x 96, crop 0.9, mean 0.5, std 0.5'
    """
    mean, std = (" ".join(f"{value:.3g}" for value in config[name]) for name in ("mean", "std"))
    return f"{' x '.join(map(str, config['input_size']))}, crop {config['crop_pct']:.3g}, mean {mean}, std {std}"


def create_transform(**settings: Any) -> Callable[[Any], Tensor]:
    """``timm.data.create_transform``, imported late and typed; its policies work with every Pillow."""
    from timm.data import create_transform as create

    transform: Callable[[Any], Tensor] = create(**settings)
    for step in getattr(transform, "transforms", ()):
        keep_a_bit(step)
    return transform


def in_channels(items: Dataset[Any], config: dict[str, Any]) -> Dataset[Any]:
    """The images in grey for a model of one channel."""
    if config["input_size"][0] == 1 and isinstance(items, ImageDataset):
        return ImageDataset(items.source, items.indices, labelled=items.labelled, mode="L")
    return items


def for_evaluation(items: Dataset[Any], config: dict[str, Any]) -> Augmented:
    """Images behind the evaluation transform of a :func:`transform_config`: resized, centre-cropped, normalised."""
    return Augmented(in_channels(items, config), create_transform(**config, is_training=False), seed=0)


def evaluation_images(
    model: nn.Module, source: str | Path | Data, *, input_size: int | None = None, **opening: Any
) -> tuple[Data, Augmented]:
    """The validation images of ``source`` as the model wants them, or all images where none are set apart.

    Args:
        model: whose size, crop and normalisation they are for.
        source: what :func:`ilmconvert.data.open_data.open_data` takes or gives.
        input_size: height and width; None: the model's.
        **opening: more for ``open_data``.

    Returns:
        The data that were opened, and a dataset of (tensor (C, H, W), label).

    Raises:
        DataError: no images, or one that can't be read.
    """
    data = source if isinstance(source, Data) else open_data(source, **opening)
    return data, for_evaluation(data.train if data.val is None else data.val, transform_config(model, input_size))


def image_batches(
    model: nn.Module,
    source: str | Path | Data,
    *,
    images: int,
    batch_size: int,
    seed: int = 0,
    input_size: int | None = None,
) -> list[Tensor]:
    """Up to so many training images of ``source`` in random order, as the model wants them: (N, C, H, W) each."""
    chosen, normalize = unit_images(model, source, at_most=images, input_size=input_size, seed=seed, training=True)
    return list(normalize(torch.stack(chosen)).split(batch_size))


def unit_images(
    model: nn.Module,
    source: str | Path | Data,
    *,
    at_most: int,
    input_size: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tuple[list[Tensor], Normalize]:
    """Up to so many images as the model wants them, but from 0 to 1, and the normalisation that is left to do.

    Args:
        model: whose size, crop, mean and standard deviation they are for.
        source: what :func:`ilmconvert.data.open_data.open_data` takes or gives; labels aren't used.
        at_most: so many, chosen at random by ``seed``.
        input_size: height and width; None: the model's.
        training: those to train on, rather than those set apart for validation.

    Returns:
        (C, H, W) each, from 0 to 1, and a function from such an image, or a batch of them, to the model's input.

    Raises:
        DataError: no images, or one that can't be read.
    """
    data = source if isinstance(source, Data) else open_data(source, unlabelled=True, seed=seed)
    config = transform_config(model, input_size)
    items = in_channels(data.train if training or data.val is None else data.val, config)
    transform = create_transform(**config, is_training=False, normalize=False)
    count = len(items)  # type: ignore[arg-type]
    chosen = random.Random(seed).sample(range(count), min(at_most, count))
    return [transform(items[i][0]).float() / 255 for i in chosen], normalization(config)


def normalization(config: dict[str, Any]) -> Normalize:
    """The last step of a transform by itself: from images in [0, 1] to a model's input."""
    return _Normalization(tuple(config["mean"]), tuple(config["std"]))


@dataclass(frozen=True)
class _Normalization:
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std
