"""What a training run starts from: the arm's network, and its images as the network takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.evidence.arms import Arm
from benchmarks.evidence.images import Images
from ilmconvert.finetune.losses import ClassifierInput
from ilmconvert.finetune.networks import replace_head
from ilmconvert.surgery.input_standardization import standardize

_EVALUATED, _ON_GPU = 16, 1_000  # images of a batch without gradients; few stay in a processor's cache
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Prepare = Callable[[Tensor], Tensor]  # bytes (N, 3, H, W) to what the network takes


@dataclass(frozen=True)
class Begun:
    """What a run starts from; the same for all settings of a seed.

    Attributes:
        inputs: the prepared images and their flips, (2, N, 3, H, W).
        features: what reaches the source's classifier for them, (2, N, D); None where nothing is distilled.
    """

    network: nn.Module
    prepare: Prepare
    inputs: Tensor
    labels: Tensor
    features: Tensor | None


def begin(
    arm: Arm,
    source: nn.Module,
    images: Images,
    num_classes: int,
    seed: int,
    prepare: Prepare | None = None,
    *,
    distilled: bool = True,
) -> Begun:
    """The network of an arm in evaluation mode, and its images, on the device of ``source`` and ``images``."""
    source = copy.deepcopy(source)
    replace_head(source, num_classes, seed)
    prepare = prepare or prepared_for(arm, images)
    inputs = torch.stack([prepare(pixels) for pixels in (images.pixels, images.pixels.flip(-1))])
    features = _features(source, inputs) if distilled else None
    return Begun(arm.build(source, inputs[0]).eval(), prepare, inputs, images.labels, features)


def prepared_for(arm: Arm, images: Images) -> Prepare:
    """The input of an arm; images are standardised to its deviation, or to the mean of the training images'."""
    if not arm.standardised:
        return normalized
    std = arm.deviation or normalized(images.pixels).std((1, 2, 3), correction=0).mean().item()
    return lambda pixels: standardize(normalized(pixels), std)


@torch.inference_mode()
def _features(source: nn.Module, inputs: Tensor) -> Tensor:
    """What reaches the source's classifier: (2, N, D)."""
    teacher = copy.deepcopy(source).eval()
    caught = ClassifierInput(teacher)

    def of(batch: Tensor) -> Tensor:
        teacher(batch)
        return caught.take()

    found = [torch.cat([of(batch) for batch in side.split(evaluated_at_once(inputs))]) for side in inputs]
    return torch.stack(found).clone()


def normalized(pixels: Tensor) -> Tensor:
    """Bytes as the input of networks for ImageNet."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def evaluated_at_once(images: Tensor) -> int:
    """How many images go through a network at once where nothing trains."""
    return _EVALUATED if images.device.type == "cpu" else _ON_GPU
