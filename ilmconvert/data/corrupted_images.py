"""Images of a dataset, corrupted as the network would see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ilmconvert.data.corruptions import corrupt
from ilmconvert.data.dataset import Augmented
from ilmconvert.data.transforms import Normalize, create_transform, in_channels, normalization
from ilmconvert.errors import DataError


def corrupted_images(
    items: Dataset[Any], config: dict[str, Any], name: str, severity: int, *, seed: int = 0
) -> Augmented:
    """The images behind the evaluation transform, corrupted between its crop and its normalisation.

    An image's noise, directions and clouds depend on the seed and its place in the dataset: they are the same for every
    network that is asked.

    Args:
        items: of (PIL image, label).
        config: of the transform, see :func:`ilmconvert.data.transforms.transform_config`.
        name: a key of :data:`ilmconvert.data.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what is random.

    Raises:
        DataError: the network takes images that aren't RGB.
    """
    if config["input_size"][0] != 3:
        raise DataError(f"corruptions are of RGB images, and the network takes {config['input_size'][0]} channel(s)")
    crop = create_transform(**config, is_training=False, normalize=False)
    return Augmented(in_channels(items, config), _Corrupting(crop, normalization(config), name, severity), seed)


@dataclass(frozen=True)
class _Corrupting:
    """The transform; each item has random numbers of its own, which :class:`Augmented` sets."""

    crop: Callable[[Any], Tensor]
    normalize: Normalize
    name: str
    severity: int

    def __call__(self, image: Any) -> Tensor:
        seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        return self.normalize(corrupt(self.crop(image).float() / 255, self.name, self.severity, seed=seed))
