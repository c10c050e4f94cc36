"""A model's state as a file holds it: tensors without second names and overlaps, and JSON values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import CheckpointError
from ilmconvert.surgery.module_state import state_of


def tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model's state without second names of one tensor, and those second names.

    Raises:
        CheckpointError: a tensor has no values, or has them elsewhere.
    """
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, t in state_of(model).items():
        if not isinstance(t, Tensor):
            continue
        if t.is_meta:
            raise CheckpointError(f"{name} is on the meta device and has no values; load weights first")
        if type(t) is not Tensor and not _has_numbers(t):
            raise CheckpointError(
                f"{name} is a {type(t).__name__}, not a plain tensor; save the model before it is quantised or sharded"
            )
        key = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else (name,)
        if key in kept:
            aliases[name] = kept[key]
        else:
            kept[key] = name
            tensors[name] = t.detach()
    return _without_overlap(tensors), aliases


def json_of(model: nn.Module) -> dict[str, Any]:
    """The entries of a model's state that are no tensors, which come from ``get_extra_state`` of its modules.

    Raises:
        CheckpointError: one isn't made of JSON values, so that it wouldn't come back as it was.
    """
    found = {name: value for name, value in state_of(model).items() if not isinstance(value, Tensor)}
    for name, value in found.items():
        if not _is_json(value):
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise CheckpointError(
                f"{name} is a {type(value).__name__} that JSON can't hold; let get_extra_state of {owner} return a "
                "tensor, or None, numbers, text, and lists and dicts (with text as keys) of these"
            )
    return found


def _is_json(value: Any) -> bool:
    """Whether a value comes back from JSON as it was."""
    if type(value) is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _has_numbers(t: Tensor) -> bool:
    """Whether ``t`` has its numbers in memory of its own; wrappers (quantised, sharded tensors) have them elsewhere."""
    try:
        return bool(t.data_ptr()) or not t.numel()
    except RuntimeError:
        return False


def _without_overlap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors; views into a storage that another tensor uses, too, become copies."""
    storages: set[int] = set()
    result = {}
    for name, t in tensors.items():
        storage = t.untyped_storage().data_ptr()
        result[name] = t.clone(memory_format=torch.contiguous_format) if storage in storages else t.contiguous()
        storages.add(storage)
    return result
