"""What a comparison needs: pictures before normalisation, and the networks that belong beside a bounded one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ilmconvert.nn import ILMNorm
from ilmconvert.robustness.comparison import StandardizedInput

Normalize = Callable[[Tensor], Tensor]


def unit_pictures(
    model: nn.Module,
    source: str | Path,
    *,
    at_most: int,
    input_size: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tuple[list[Tensor], Normalize]:
    """Up to so many pictures as the model wants them, but from 0 to 1, and the normalisation that is left to do.

    Args:
        model: whose size, crop, mean and standard deviation they are for.
        source: see :func:`ilmconvert.finetune.data.open_data`; labels aren't used.
        at_most: so many, chosen at random by ``seed``.
        input_size: height and width; None: the model's.
        training: those to train on, rather than those set apart for validation.

    Returns:
        (3, H, W) each, RGB from 0 to 1, and a function from such a picture, or a batch of them, to the model's input.

    Raises:
        DataError: no pictures, or one that can't be read.
    """
    from timm.data import create_transform

    from ilmconvert.finetune.data import open_data, transform_config
    from ilmconvert.finetune.recipe import get_recipe

    data = open_data(source, unlabelled=True, seed=seed)
    items = data.train if training or data.val is None else data.val
    config = transform_config(model, get_recipe("full", **({} if input_size is None else {"input_size": input_size})))
    transform = create_transform(**config, is_training=False, normalize=False)
    count = len(items)  # type: ignore[arg-type]
    chosen = random.Random(seed).sample(range(count), min(at_most, count))
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return [transform(items[i][0]).float() / 255 for i in chosen], lambda x: (x - mean) / std


def networks(bounded: nn.Module, normalize: Normalize, pictures: Sequence[Tensor]) -> dict[str, nn.Module]:
    """The source, the bounded network, and the source behind a standardisation of its input, by title.

    The source is the network without its bounds, which computes the same. Pictures are standardised to the mean
    standard deviation that ``pictures`` have, which favours that baseline.
    """
    std = torch.stack([normalize(p).std(correction=0) for p in pictures]).mean().item()
    source = without_bounds(bounded)
    return {"source": source, "bounded": bounded.eval(), "input standardised": StandardizedInput(source, std)}


def is_bounded(model: nn.Module) -> bool:
    """Whether a layer limits its restoring path.

    >>> is_bounded(nn.Sequential(ILMNorm(8, 1, key_group_size=8, restore=True, restore_bound=2.0)))
    True
    """
    layers = (layer for layer in model.modules() if isinstance(layer, ILMNorm))
    return any(layer.restore_bound is not None or layer.restore_range is not None for layer in layers)


def without_bounds(model: nn.Module) -> nn.Module:
    """A copy in which every instance passes the restoring path as it is.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> without_bounds(convert(source, restore_bound=2.0))[1].restore_bound is None
    True
    """
    free = copy.deepcopy(model).eval()
    for layer in free.modules():
        if isinstance(layer, ILMNorm):
            layer.restore_bound = layer.restore_range = None
    return free
