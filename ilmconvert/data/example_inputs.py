"""A batch of the kind that a model takes, for trying it out; and the tensors that it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.data.trained_images import trained_transform
from ilmconvert.errors import ModelError
from ilmconvert.surgery.conversion_info import noted

_IMAGE_SIZE = 224
_DETECTION_SIZE = 320
_FLOW_SIZE = (128, 160)
_VIDEO_FRAMES = 16


def example_inputs(
    model: nn.Module, *, batch_size: int = 2, size: int | Sequence[int] | None = None, seed: int = 0
) -> tuple[Any, ...]:
    """The positional inputs of ``model.forward``: random, the same ones for the same seed.

    Args:
        model: a timm or torchvision model, converted or not, or any module if ``size`` is the whole shape.
        batch_size: N.
        size: an integer (square images), (H, W), or a whole shape without N. None: the model's own, or that of the
            images that it was fine-tuned on.
        seed: of the values; the global random state stays.

    Returns:
        For classification and segmentation one (N, C, H, W) tensor, for video models (N, C, T, H, W), each standard
        normal as normalised images are; for detection a list of N (C, H, W) tensors in [0, 1]; for optical flow two
        (N, 3, H, W) tensors in [-1, 1]. On the device and of the dtype of the model's parameters.

    Raises:
        ModelError: nothing is known about the model and ``size`` isn't a whole shape.
    """
    generator = torch.Generator().manual_seed(seed)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(like)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device="cpu").to(like)

    if not isinstance(size, int) and size is not None and len(size) != 2:
        return (normal(batch_size, *size),)
    area = _area(type(model).__module__)
    if area == "detection":
        height, width = _pair(size, _DETECTION_SIZE)
        return ([uniform(3, height, width) for _ in range(batch_size)],)
    if area == "optical_flow":
        shape = (batch_size, 3, *_pair(size, _FLOW_SIZE))
        return (uniform(*shape) * 2 - 1, uniform(*shape) * 2 - 1)
    if area == "video":
        return (normal(batch_size, 3, *_clip(model, size)),)
    trained = trained_transform(model).get("input_size")
    if size is None and trained is not None:
        return (normal(batch_size, *trained),)
    channels, own = _timm_shape(model) if hasattr(model, "pretrained_cfg") else (3, _torchvision_size(model, area))
    return (normal(batch_size, channels, *_pair(size, own)),)


def _area(module: str) -> str | None:
    """The part of torchvision.models that a class is from, such as "video"; "" for classification."""
    if not module.startswith("torchvision.models."):
        return None
    area = module.split(".")[2]
    return area if area in ("detection", "optical_flow", "segmentation", "video") else ""


def _pair(size: int | Sequence[int] | None, default: int | Sequence[int]) -> tuple[int, int]:
    chosen = default if size is None else size
    if isinstance(chosen, int):
        return chosen, chosen
    height, width = chosen
    return int(height), int(width)


def _args(model: nn.Module) -> Mapping[str, Any]:
    spec = noted(model).spec
    return {} if spec is None else spec.model_args


def _timm_shape(model: nn.Module) -> tuple[int, tuple[int, int]]:
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    channels, height, width = cfg.get("input_size") or (3, _IMAGE_SIZE, _IMAGE_SIZE)
    args = {**getattr(model, "_model_args", {}), **_args(model)}
    channels = args.get("in_chans") or channels
    return channels, _pair(args.get("img_size"), (height, width))


def _torchvision_size(model: nn.Module, area: str | None) -> int:
    if area is None:
        raise ModelError(
            f"what {type(model).__name__} takes isn't known; give the shape of an input without the batch, "
            "as in example_inputs(model, size=(3, 224, 224))"
        )
    if type(model).__name__ == "Inception3":
        return 299
    own = getattr(model, "image_size", None)  # of vision transformers, which take no other
    return own if isinstance(own, int) else _IMAGE_SIZE


def _clip(model: nn.Module, size: int | Sequence[int] | None) -> tuple[int, int, int]:
    """(T, H, W) of a video model: the residual networks were trained on 112, the others on 224 pixels."""
    args = _args(model)
    default = 112 if type(model).__name__ == "VideoResNet" else _IMAGE_SIZE
    frames = args.get("temporal_size") or _VIDEO_FRAMES
    return frames, *_pair(size, args.get("spatial_size") or default)
