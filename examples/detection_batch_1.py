"""A detector trained one image at a time: find coins, with torchvision's RetinaNet on a pretrained backbone.

Large images leave room for one in a batch. Here a RetinaNet gets EfficientNet-Lite0 as its backbone and learns from
crops of the left half of a photograph, 120 steps of one image; judged on the right half and two mirror images of it:

    $ python examples/detection_batch_1.py
    BatchNorm, training    average precision 0.93
    BatchNorm, frozen      average precision 1.00
    converted to ILM-GN    average precision 0.98

About 1 minute on one CPU core; needs ``pip install '.[demo]'``. Both halves are lit alike, which is kind to
BatchNorm: after 250 steps all three reach 1.00. With ``--resnet50 default`` it is torchvision's retinanet_resnet50_fpn
on its ImageNet weights (a download), with ``--resnet50 none`` the same on random ones.
"""

from __future__ import annotations

import argparse

import torch
from scipy import ndimage
from skimage import data, filters, measure, segmentation
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.transforms import v2

from ilmconvert import convert
from ilmconvert.data.sample_photographs import load_lite0

HALF = 188  # pixels; the photograph is 303 x 384
Sample = tuple[Tensor, dict[str, Tensor]]


class Backbone(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights, and a feature pyramid on its last three stages."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = load_lite0()
        self.pyramid = FeaturePyramidNetwork([40, 112, 320], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stages = self.body.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True)
        return self.pyramid({str(i): stage for i, stage in enumerate(stages)})


def detector(resnet50: str | None) -> RetinaNet:
    torch.manual_seed(0)
    if resnet50:
        weights = {"none": None, "default": "DEFAULT"}[resnet50]
        return retinanet_resnet50_fpn(
            weights=None, weights_backbone=weights, trainable_backbone_layers=5, num_classes=2, min_size=192
        )
    anchors = AnchorGenerator(((24, 32, 40), (48, 56, 64), (80, 96, 112)), ((1.0,),) * 3)
    return RetinaNet(Backbone(), num_classes=2, min_size=192, max_size=320, anchor_generator=anchors)


def coins() -> list[Sample]:
    """The left and the right half of scikit-image's photograph of 24 coins, with a box around each."""
    grey = data.coins()
    markers = 1 * (grey < 30) + 2 * (grey > 150)
    filled = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(grey), markers) == 2)
    found = torch.tensor([region.bbox for region in measure.regionprops(measure.label(filled)) if region.area >= 300])
    image = tv_tensors.Image(torch.tensor(grey / 255.0, dtype=torch.float).expand(3, -1, -1))
    halves = []
    for left in (0, 384 - HALF):
        middle = (found[:, 1] + found[:, 3]) / 2 - left
        boxes = found[(middle > 0) & (middle < HALF)][:, [1, 0, 3, 2]].float() - torch.tensor([left, 0, left, 0])
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(303, HALF))
        labels = torch.ones(len(boxes), dtype=torch.long)
        halves.append((image[:, :, left : left + HALF], {"boxes": boxes, "labels": labels}))
    return halves


def train(model: nn.Module, half: Sample, steps: int, *, frozen_norms: bool) -> None:
    """One random crop a step: square, mirrored, brighter or darker."""
    torch.manual_seed(1)
    augment = v2.Compose(
        [
            v2.RandomCrop(HALF),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(brightness=0.5),
            v2.SanitizeBoundingBoxes(min_size=20),
        ]
    )
    for module in model.train().modules():
        if frozen_norms and isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    for _ in range(steps):
        image, target = augment(*half)
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()


@torch.no_grad()
def average_precision(model: nn.Module, samples: list[Sample]) -> float:
    """Area under precision over recall, at an overlap of one half."""
    found, total = [], 0
    for image, target in samples:
        result = model.eval()([image])[0]
        free = torch.ones(len(target["boxes"]), dtype=torch.bool)
        total += len(free)
        for score, overlaps in zip(result["scores"], box_iou(result["boxes"], target["boxes"]), strict=True):
            best = int((overlaps * free).argmax())
            hit = bool(overlaps[best] >= 0.5 and free[best])
            free[best] &= not hit
            found.append((float(score), hit))
    hits = torch.tensor([hit for _, hit in sorted(found, reverse=True)], dtype=torch.float)
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resnet50", choices=["none", "default"], help="torchvision's own RetinaNet; its weights")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    left, right = coins()
    test = [right, v2.RandomHorizontalFlip(1)(*right), v2.RandomVerticalFlip(1)(*right)]
    for kind in ("BatchNorm, training", "BatchNorm, frozen", "converted to ILM-GN"):
        model = detector(options.resnet50)
        model = convert(model) if "converted" in kind else model
        train(model, left, 2 if options.quick else 120, frozen_norms="frozen" in kind)
        print(f"{kind:<22} average precision {average_precision(model, test):.2f}", flush=True)


if __name__ == "__main__":
    main()
