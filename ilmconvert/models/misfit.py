"""What to say of weights that don't fit a model, and which arguments of its constructor would make them fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ilmconvert.models.head import number_of_classes
from ilmconvert.models.match_names import Match, some
from ilmconvert.models.spec import ModelSpec
from ilmconvert.surgery.conversion_info import noted


def differences(found: Match, model: nn.Module, own: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    """What doesn't fit, in one line, and the arguments that would make it fit where these can be told."""
    shapes = [f"{key} {tuple(found.tensors[key].shape)} instead of {tuple(own[key].shape)}" for key in found.wrong]
    kinds = {"missing": found.missing, "unexpected": found.unexpected, "of another shape": shapes}
    text = "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in kinds.items() if keys)
    arguments = _arguments(found, model, own)
    if arguments:
        options = " ".join(f"--model-arg {key}={value}" for key, value in arguments.items())
        text += f"; build the model with {' and '.join(arguments)} as in the file ({options})"
    return text, arguments


def _arguments(found: Match, model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, int]:
    """Arguments of the constructor that explain all of the differences, or none."""
    spec = noted(model).spec
    if not isinstance(spec, ModelSpec):
        return {}
    arguments = _of_names(found, model)
    if (found.missing or found.unexpected) and not arguments:
        return {}
    classes, channels = number_of_classes(model), _input_channels(model)
    for key in found.wrong:
        theirs, ours = tuple(found.tensors[key].shape), tuple(own[key].shape)
        if len(theirs) == len(ours) > 2 and ours[1] == channels and (theirs[0], *theirs[2:]) == (ours[0], *ours[2:]):
            name, value = "in_chans", theirs[1]
        elif len(theirs) == len(ours) > 0 and ours[0] == classes and theirs[1:] == ours[1:]:
            name, value = "num_classes", theirs[0]
        else:
            return {}
        if arguments.setdefault(name, value) != value:
            return {}
    return arguments


def _of_names(found: Match, model: nn.Module) -> dict[str, int]:
    """``num_classes`` where a head is all that only the model or only the file has."""
    if not hasattr(model, "get_classifier"):  # torchvision builds no model without a head
        return {}
    head = {f"{found.added}{name}" for name in _names_of(model, model.get_classifier())}  # type: ignore[operator]
    if found.missing and not found.unexpected and set(found.missing) <= head:
        return {"num_classes": 0}
    rows = {found.tensors[key].shape[0] for key in found.unexpected if found.tensors[key].ndim}
    if found.unexpected and not found.missing and len(rows) == 1 and number_of_classes(model) == 0:
        return {"num_classes": rows.pop()}
    return {}


def _names_of(model: nn.Module, part: nn.Module) -> list[str]:
    place = next((name for name, module in model.named_modules() if module is part), None)
    return [] if place is None else [f"{place}.{key}" for key in part.state_dict()]


def _model_args(model: nn.Module) -> Mapping[str, Any]:
    spec = noted(model).spec
    return {} if spec is None else spec.model_args


def _input_channels(model: nn.Module) -> int | None:
    """Of a model of timm, whose constructors take ``in_chans``."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        return None
    size = config.get("input_size") or (3,)
    found = getattr(model, "in_chans", None) or _model_args(model).get("in_chans", size[0])
    return int(found)
