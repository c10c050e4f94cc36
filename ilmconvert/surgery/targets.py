"""The table of targets, and the settings of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ilmconvert._constants import TARGETS, Target
from ilmconvert.nn.group_sizes import best_num_groups
from ilmconvert.surgery.layer_config import LayerConfig


def config_class(target: Target) -> type[LayerConfig]:
    """The class of the settings of a target's layers.

    >>> config_class(TARGETS["ilm_gn"]).__name__
    'ILMNormConfig'
    """
    module, _, name = target.config.partition(":")
    found: type[LayerConfig] = getattr(import_module(module), name)
    return found


def group_count(target: Target, num_channels: int, at_most: int) -> int:
    """How many groups a target's layer of so many channels has.

    >>> [group_count(TARGETS[to], 64, 32) for to in ("gn", "ln", "in")]
    [32, 1, 64]
    """
    if target.groups == "several":
        return best_num_groups(num_channels, at_most)
    return 1 if target.groups == "one" else num_channels


def config_of(layer: nn.Module) -> LayerConfig | None:
    """The settings of a layer that a conversion made; None for every other module."""
    return next((config for cls in _classes() if (config := cls.of(layer)) is not None), None)


def read_config(data: Mapping[str, Any]) -> LayerConfig:
    """The settings that :meth:`ilmconvert.surgery.layer_config.LayerConfig.to_dict` gave.

    Raises:
        KeyError: an unknown kind of layer, an entry missing or one too many.
        ValueError: an entry is of another type.
    """
    kind = data.get("kind", "ilm_norm")  # files say nothing of the first kind that there was
    for cls in _classes():
        if cls.kind == kind:
            return cls.from_dict(data)
    raise KeyError("kind")


def _classes() -> list[type[LayerConfig]]:
    return list({config_class(target): None for target in TARGETS.values()})
