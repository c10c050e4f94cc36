"""Training images under heavy augmentation: timm's RandAugment, as ``ilmconvert finetune --aa`` has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from benchmarks.evidence.sets import Images

POLICY = "rand-m9-mstd0.5-inc1"  # two operations an image: light, contrast, inversion, geometry; neither noise nor blur
#: Sets whose training images are augmented; their validation and test images are as they are.
AUGMENTED = ("fashion-mnist-augmented",)


def augmented(images: Images, views: int, seed: int) -> Images:
    """``views`` augmentations of every image, those of a view after another; the same for the same seed."""
    empty = tuple(round(255 * x) for x in IMAGENET_DEFAULT_MEAN)  # where a rotated image isn't; as in timm
    operations = rand_augment_transform(POLICY, {"img_mean": empty})
    with _seeded(seed):
        found = [pil_to_tensor(operations(to_pil_image(x))) for _ in range(views) for x in images.pixels.cpu()]
    return Images(torch.stack(found), images.labels.cpu().repeat(views))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """timm draws from the generators of Python and of NumPy; afterwards they go on as if it hadn't."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
