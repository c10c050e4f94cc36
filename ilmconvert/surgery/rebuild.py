"""A converted model again, from the settings of its layers and its tensors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.nn import ILMNorm, ILMNormAct
from ilmconvert.surgery import plain
from ilmconvert.surgery.sources import find_source

_SETTINGS = set(inspect.signature(ILMNorm.__init__).parameters) - {"self", "device", "dtype"}


def layers_of(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """Name, aliases and settings of every layer that a conversion made, in the model's own order."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ILMNorm) or plain.is_plain_layer(module):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    return tuple(
        {"name": names[key][0], "aliases": names[key][1:], "config": _config(module)} for key, module in modules.items()
    )


def _config(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, ILMNorm):
        return layer.config()
    assert isinstance(layer, nn.GroupNorm)
    return plain.settings_of(layer)


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
        raise ValueError(f"its metadata is damaged at layer {str(entry)[:60]}; convert the model again")
    return {"name": entry["name"], "aliases": entry["aliases"], "config": entry["config"]}


def _is_complete(config: Mapping[str, Any]) -> bool:
    if plain.is_plain(config):
        return set(config) == plain.SETTINGS
    # Most layers have no range, and say nothing of it.
    return {*config, "restore_range"} == _SETTINGS


def replace_layers(model: nn.Module, layers: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Put a layer without values in every named place of ``model``, in place; returns the root.

    Raises:
        ValueError: a name isn't there or isn't a norm of so many channels; ``model`` is as it was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[str, nn.Module] = {}
    for entry in layers:
        layer = _empty_layer(entry, modules.get(entry["name"]))
        for name in (entry["name"], *entry["aliases"]):
            if name not in modules:
                raise ValueError(f"the model has no module {name!r}")
            new[name] = layer
    for name, layer in new.items():
        parent, _, child = name.rpartition(".")
        if name:
            modules[parent]._modules[child] = layer
    return new.get("", model)


def restore(
    model: nn.Module,
    layers: Iterable[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> nn.Module:
    """:func:`replace_layers`, then every tensor into its place, all or nothing.

    Raises:
        ValueError: layers or tensors don't fit; ``model`` is as it was.
    """
    layers = list(layers)
    state = dict(tensors)
    for alias, name in aliases.items():
        if name not in tensors:
            raise ValueError(f"tensor {name!r}, of which {alias!r} is a second name, is missing")
        state[alias] = tensors[name]
    # On a copy without values first: a model that doesn't fit must stay as it was.
    _check_state(replace_layers(_skeleton(model), layers), state)
    result = replace_layers(model, layers)
    # The model's own state dict carries the versions that some modules ask for (torchvision's MNASNet).
    versioned = result.state_dict()
    versioned.update(state)
    # assign keeps the types of the file and copies nothing.
    result.load_state_dict(versioned, strict=True, assign=True)
    _tie(result, aliases)
    return result


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
    if plain.is_plain(config):
        layer = plain.new_layer(config, fused=bool(fused))
        for part, module in fused.items():
            setattr(layer, part, module)
        return layer
    return ILMNormAct(**config, **fused, device="meta") if fused else ILMNorm(**config, device="meta")


def _skeleton(model: nn.Module) -> nn.Module:
    """A deep copy on the meta device: structure and shapes without values."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        if id(t) not in memo:
            empty = torch.empty_like(t, device="meta")
            memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or left_over:
        parts = [
            f"{len(k)} {what}, first {k[0]!r}" for k, what in ((missing, "missing"), (left_over, "left over")) if k
        ]
        raise ValueError(f"its tensors aren't the model's: {'; '.join(parts)}")
    for name, t in expected.items():
        if t.shape != state[name].shape:
            raise ValueError(f"tensor {name!r} has shape {tuple(state[name].shape)}, the model {tuple(t.shape)}")


def _tie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make second names one object again: loading by assignment gave each its own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for alias, name in aliases.items():
        (owner, _, attribute), (first, _, kept) = alias.rpartition("."), name.rpartition(".")
        tensor = getattr(modules[first], kept)
        setattr(modules[owner], attribute, tensor)
