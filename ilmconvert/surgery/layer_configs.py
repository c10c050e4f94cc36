"""The layers of a conversion as JSON values, and layers without values from these."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

from torch import nn

from ilmconvert.nn import ILMNorm, ILMNormAct
from ilmconvert.surgery import group_norm_target
from ilmconvert.surgery.sources import find_source

_SETTINGS = set(inspect.signature(ILMNorm.__init__).parameters) - {"self", "device", "dtype"}


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _is_flag(value: Any) -> bool:
    return type(value) is bool


# A layer with settings of another type may be built and fail when it is used; where nothing is said None will do, too.
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("num_channels", "num_groups", "key_group_size", "reduction", "correction"), _is_integer),
    **dict.fromkeys(("restore", "affine"), _is_flag),
    "eps": _is_number,
    "kind": lambda value: value == group_norm_target.KIND,
    "restore_bound": lambda value: value is None or _is_number(value),
    "input_dims": lambda value: value is None or value in (3, 4, 5),
    "restore_range": lambda value: value is None or (isinstance(value, list) and all(map(_is_number, value))),
}


def layers_of(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """Name, aliases and settings of every layer that a conversion made, in the model's own order."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ILMNorm) or group_norm_target.is_plain_layer(module):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    return tuple(
        {"name": names[key][0], "aliases": names[key][1:], "config": _config(module)} for key, module in modules.items()
    )


def _config(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, ILMNorm):
        return layer.config()
    assert isinstance(layer, nn.GroupNorm)
    return group_norm_target.settings_of(layer)


def check_layer(entry: Any) -> dict[str, Any]:
    """An entry of :func:`layers_of` that was read from a file, or a ValueError."""
    ok = (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("aliases"), list)
        and all(isinstance(alias, str) for alias in entry["aliases"])
        and isinstance(entry.get("config"), dict)
        and _is_complete(entry["config"])
    )
    if not ok:
        raise ValueError(f"its metadata is damaged at layer {reprlib.repr(entry)}; convert the model again")
    for key, value in entry["config"].items():
        if not _KINDS[key](value):
            name = reprlib.repr(entry["name"])
            raise ValueError(f"the settings of {name} are damaged: {key} is {reprlib.repr(value)}")
    return {"name": entry["name"], "aliases": entry["aliases"], "config": entry["config"]}


def _is_complete(config: Mapping[str, Any]) -> bool:
    if group_norm_target.is_plain(config):
        return set(config) == group_norm_target.SETTINGS
    # Most layers have no range and take any number of dimensions, and say nothing of it.
    return {*config, "restore_range", "input_dims"} == _SETTINGS


def replace_layers(model: nn.Module, layers: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Put a layer without values in every named place of ``model``, in place; returns the root.

    Raises:
        ValueError: a name isn't there or isn't a norm of so many channels; ``model`` is as it was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[str, nn.Module] = {}
    for entry in layers:
        first = modules.get(entry["name"])
        layer = _empty_layer(entry, first)
        for name in (entry["name"], *entry["aliases"]):
            if name not in modules:
                raise ValueError(f"the model has no module {name!r}")
            if modules[name] is not first:
                raise ValueError(f"{name!r} and {entry['name']!r} are one layer in the file and two in the model")
            if name in new:
                raise ValueError(f"{name!r} is in the file twice")
            new[name] = layer
    for name, layer in new.items():
        parent, _, child = name.rpartition(".")
        if name:
            modules[parent]._modules[child] = layer
    return new.get("", model)


def _empty_layer(entry: Mapping[str, Any], module: nn.Module | None) -> nn.Module:
    """An ILM Norm or plain layer on the meta device for ``module``, with the latter's fused modules."""
    name, config = entry["name"], entry["config"]
    if module is None:
        raise ValueError(f"the model has no module {name!r}")
    if isinstance(module, ILMNorm):
        channels = module.num_channels
        fused: dict[str, Any] = dict(module.named_children())
    else:
        describe = find_source(module)
        if describe is None:
            raise ValueError(f"{name!r} is a {type(module).__name__}, not a layer that can be converted")
        source = describe(module)
        channels = source.num_channels
        fused = {k: m for k, m in (("drop", source.drop), ("act", source.act)) if m is not None}
    # Bounds every size that the settings imply before anything is allocated.
    if config["num_channels"] != channels:
        raise ValueError(f"{name!r} has {channels} channels, not {config['num_channels']!r}")
    try:
        layer = _new_layer(config, fused)
    except (TypeError, ValueError) as e:
        raise ValueError(f"the settings of {name!r} are damaged: {e}") from e
    layer.training = module.training
    return layer


def _new_layer(config: Mapping[str, Any], fused: Mapping[str, Any]) -> nn.Module:
    if group_norm_target.is_plain(config):
        layer = group_norm_target.new_layer(config, fused=bool(fused))
        for part, module in fused.items():
            setattr(layer, part, module)
        return layer
    return ILMNormAct(**config, **fused, device="meta") if fused else ILMNorm(**config, device="meta")
