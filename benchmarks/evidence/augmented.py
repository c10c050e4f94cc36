"""Training images under heavy augmentation: timm's RandAugment, as ``ilmconvert finetune --aa`` has it."""

from __future__ import annotations

import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from benchmarks.evidence.images import Images
from ilmconvert.data.dataset import seeded
from ilmconvert.data.policies import keep_a_bit

POLICY = "rand-m9-mstd0.5-inc1"  # two operations an image: light, contrast, inversion, geometry; neither noise nor blur
#: Sets whose training images are augmented; their validation and test images are as they are.
AUGMENTED = ("fashion-mnist-augmented",)


def augmented(images: Images, views: int, seed: int) -> Images:
    """``views`` augmentations of every image, those of a view after another; the same for the same seed."""
    around = tuple(round(255 * x) for x in IMAGENET_DEFAULT_MEAN)  # beside an image that is turned or moved; as in timm
    operations = rand_augment_transform(POLICY, {"img_mean": around})
    keep_a_bit(operations)
    with seeded(seed):
        found = [pil_to_tensor(operations(to_pil_image(x))) for _ in range(views) for x in images.pixels.cpu()]
    return Images(torch.stack(found), images.labels.cpu().repeat(views))
