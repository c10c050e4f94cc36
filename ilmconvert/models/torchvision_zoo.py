"""What :mod:`ilmconvert.models.create` needs to know about torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ilmconvert.errors import WeightsError, one_line
from ilmconvert.models.weight_files import WEIGHTS_CURE

#: A stored argument of our own: detection models with pretrained weights have FrozenBatchNorm2d, for which their
#: constructors have no argument. Its value is the eps.
FROZEN_EPS = "frozen_batchnorm_eps"


def names() -> list[str]:
    """All models but the quantised ones, whose layers aren't torch.nn's."""
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


def is_known(name: str) -> bool:
    """Whether torchvision has the model."""
    return name in names()


def canonical(name: str) -> str:
    """The name itself."""
    return name


def build(architecture: str, args: dict[str, Any]) -> nn.Module:
    """The model without pretrained weights, neither its own nor its backbone's."""
    eps = args.pop(FROZEN_EPS, None)
    builder = torchvision.models.get_model_builder(architecture)
    if "weights_backbone" in inspect.signature(builder).parameters:
        args["weights_backbone"] = None
    model: nn.Module = builder(weights=None, **args)
    if eps is not None:
        _freeze(model, eps)
    return model


def build_pretrained(
    name: str, architecture: str, args: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The model with its default weights, arguments that the weights bring along, and where the weights are from."""
    weights = next(iter(torchvision.models.get_model_weights(architecture)), None)
    if weights is None:
        raise WeightsError(f"there are no default weights of {name}", WEIGHTS_CURE)
    weights = type(weights)["DEFAULT"]
    builder = torchvision.models.get_model_builder(architecture)
    try:
        model: nn.Module = builder(weights=weights, **args)
    except OSError as error:  # urllib's errors are OSErrors
        reason = one_line(error)
        raise WeightsError(f"no network to download the default weights of {name} ({reason})", WEIGHTS_CURE) from error
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise WeightsError(f"can't get the default weights of {name}: {reason}", WEIGHTS_CURE) from error
    origin = {"weights": "default", "name": str(weights), "url": weights.url}
    return model, _found_args(model, args), origin


def build_from_foreign(architecture: str, args: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module | None:
    """torchvision has no translation of other weights."""
    return None


def _found_args(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that torchvision sets by itself when it builds the model with pretrained weights."""
    kind, found = type(model).__name__, dict[str, Any]()
    if kind in ("GoogLeNet", "Inception3"):
        found = {"transform_input": model.transform_input, "aux_logits": model.aux_logits}
    elif kind in ("FCN", "DeepLabV3"):
        found = {"aux_loss": model.aux_classifier is not None}
    frozen = {module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d)}
    if frozen:
        found[FROZEN_EPS] = min(frozen)
    return {**found, **given}


def _freeze(model: nn.Module, eps: float) -> None:
    """Put FrozenBatchNorm2d in the place of the backbone's BatchNorm2d, as a build with weights does."""
    backbone = model.get_submodule("backbone")
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps))
