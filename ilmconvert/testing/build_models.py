"""Models as the sweep builds them, and the smallest inputs that they take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.models.create import ModelSpec, parse_name
from ilmconvert.models.norm_counts import skeleton
from ilmconvert.surgery.outputs import outputs

SIZES = (32, 64, 96, 128, 160, 192, 224, 256)
_VIDEO_SIZES = (48, 112, 224)
_DETECTION_SIZE = 128
_LARGE = 256
# The images stay as small as they are given. No threshold for boxes, so that the heads behind them see some: even
# scores of exactly 0 (saturated by random weights) are above -1.
_IMAGES = {"min_size": _DETECTION_SIZE, "max_size": _DETECTION_SIZE}
_TWO_STAGES = {**_IMAGES, "box_score_thresh": -1.0, "rpn_post_nms_top_n_test": 100, "box_detections_per_img": 10}
_DETECTION_ARGS: Mapping[str, Mapping[str, Any]] = {
    "faster_rcnn": _TWO_STAGES,
    "mask_rcnn": _TWO_STAGES,
    "keypoint_rcnn": _TWO_STAGES,
    "retinanet": {**_IMAGES, "score_thresh": -1.0},
    "fcos": {**_IMAGES, "score_thresh": -1.0},
    "ssdlite": {"score_thresh": -1.0},
}


def family(spec: ModelSpec) -> str:
    """The source file that defines the model, as in "resnet" or "detection.fcos"."""
    if spec.library == "timm":
        import timm

        builder = timm.models.model_entrypoint(spec.architecture.partition(".")[0])
    else:
        import torchvision

        builder = torchvision.models.get_model_builder(spec.architecture)
    module: str = builder.__module__
    return module.removeprefix("timm.models.").removeprefix("torchvision.models.")


def for_sweep(name: str) -> ModelSpec:
    """The spec with which the sweep builds a model: of small images, where the constructor has to be told."""
    spec = parse_name(name)
    if spec.library == "timm":
        return _halved(spec)
    area, _, kind = family(spec).rpartition(".")
    return replace(spec, model_args=_DETECTION_ARGS.get(kind, {})) if area == "detection" else spec


def _halved(spec: ModelSpec) -> ModelSpec:
    """For half the image size where timm's model is bound to a large one: the same layers, a quarter of the work."""
    import timm

    cfg = timm.models.get_pretrained_cfg(spec.architecture)
    if cfg is None or not cfg.fixed_input_size or cfg.input_size[-1] <= _LARGE:
        return spec
    smaller = replace(spec, model_args={"img_size": cfg.input_size[-1] // 2})
    try:
        with torch.device("meta"):
            smaller.build()
    except Exception:  # it can't be told, or not this size
        return spec
    return smaller


def build_on_meta(spec: ModelSpec) -> nn.Module:
    """The model without values, for counting and planning."""
    return skeleton(spec).to("meta")


def find_size(model: nn.Module, batch_size: int) -> int | None:
    """The first of several input sizes that the model takes; None for its own.

    Raises:
        Exception: what the model raises for its own size.
    """
    module = type(model).__module__
    if module.startswith("torchvision.models.detection"):
        return _DETECTION_SIZE
    sizes: list[int | None] = [*SIZES, None]
    if module.startswith("torchvision.models.optical_flow"):
        sizes = [None]
    elif module.startswith("torchvision.models.video"):
        sizes = [*_VIDEO_SIZES, None]
    accepted: list[int | None] = []
    for size in sizes:
        try:
            found = _run(model, example_inputs(model, batch_size=batch_size, size=size))
        except Exception:  # models refuse a size in as many ways as there are
            if size is None and not accepted:
                raise
            continue
        accepted.append(size)
        # Poolings over nothing give NaN instead of an error.
        if all(t.isfinite().all() for t in found):
            return size
    return accepted[0]


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    model.eval()
    # The auxiliary heads of GoogLeNet and Inception need larger images than the rest, and only run in training.
    model.training = bool(getattr(model, "aux_logits", False))
    with torch.no_grad():
        found = outputs(model(*inputs))
    model.eval()
    return found


def keep_boxes(model: nn.Module) -> nn.Module:
    """Let the boxes of a two-stage detector stay near their anchors; in place.

    With random weights nearly all of them would lie outside of the image, and the heads behind them see nothing.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".bbox_pred." in name:
                p.mul_(1e-4)
    return model


def targets(images: list[Tensor], model: nn.Module) -> list[dict[str, Tensor]]:
    """One box an image, with what mask and keypoint heads are trained on."""
    heads = getattr(model, "roi_heads", None)
    result = []
    for image in images:
        height, width = image.shape[-2:]
        box = torch.tensor([[width * 0.1, height * 0.2, width * 0.8, height * 0.7]]).to(image)
        target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64, device=image.device)}
        if getattr(heads, "mask_predictor", None) is not None:
            target["masks"] = torch.ones(1, height, width, dtype=torch.uint8, device=image.device)
        if getattr(heads, "keypoint_predictor", None) is not None:
            middle = torch.tensor([width * 0.5, height * 0.5, 1.0]).to(image)
            target["keypoints"] = middle.expand(1, 17, 3).clone()
        result.append(target)
    return result


def takes_targets(model: nn.Module) -> bool:
    """Whether the model's forward is given targets to train."""
    return "targets" in inspect.signature(model.forward).parameters
