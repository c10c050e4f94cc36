"""What a fine-tuned network says of the images that it was trained on: their size, normalisation and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ilmconvert.surgery.conversion_info import noted

_LARGEST_SIDE = 16384


def _is_size(value: Any) -> bool:
    return len(value) == 3 and all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in value)


def _is_numbers(value: Any) -> bool:
    return len(value) > 0 and all(isinstance(n, float | int) for n in value)


#: What is kept of a transform, each with what a value has to be: a checkpoint may come from elsewhere.
_KEPT: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "input_size": (list, _is_size),
    "interpolation": (str, lambda value: value in ("bilinear", "bicubic", "nearest", "lanczos", "random")),
    "mean": (list, _is_numbers),
    "std": (list, lambda value: _is_numbers(value) and all(value)),
    "crop_pct": (float, lambda value: 0 < value <= 1),
    "crop_mode": (str, lambda value: value in ("center", "squash", "border")),
}

#: Names of the settings of a transform that a network remembers.
REMEMBERED = tuple(_KEPT)


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a transform's settings those that a network remembers, as JSON values."""
    kept = {key: config[key] for key in _KEPT if key in config}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def trained_transform(model: nn.Module) -> dict[str, Any]:
    """The settings of the transform that a fine-tuned network saw its validation images through; {} of others.

    The keys are those of ``timm.data.resolve_data_config``.
    """
    found = _data_of(model)
    kept = {k: found[k] for k, (kind, fits) in _KEPT.items() if isinstance(found.get(k), kind) and fits(found[k])}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}


def trained_classes(model: nn.Module) -> tuple[str, ...]:
    """The names of a fine-tuned network's classes, in the order of its logits; empty where they aren't known."""
    names = _data_of(model).get("classes")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _data_of(model: nn.Module) -> Mapping[str, Any]:
    run = noted(model).provenance.get("finetuned")
    data = run.get("data") if isinstance(run, Mapping) else None
    return data if isinstance(data, Mapping) else {}
