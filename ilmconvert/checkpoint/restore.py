"""Load the tensors of a file into a model: check first by shapes alone that they fit, then copy the values."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.surgery.converted_layers import ConvertedLayer, replace_layers

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy on the meta device: structure and shapes without values."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *(t for _, t in model.named_buffers())):
        if id(t) not in memo:
            empty = torch.empty_like(t, device="meta")
            memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def check(
    model: nn.Module, layers: Iterable[ConvertedLayer], entries: Mapping[str, Entry], aliases: Mapping[str, str]
) -> None:
    """Whether :func:`restore` would fit a model like this one, which has no values and is used up here.

    Raises:
        ValueError: names the layer or tensor that doesn't fit.
    """
    found = dict(entries)
    for alias, name in aliases.items():
        if name not in entries:
            raise ValueError(f"tensor {name!r}, of which {alias!r} is a second name, is missing")
        found[alias] = entries[name]
    expected = replace_layers(model, layers).state_dict()
    missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or left_over:
        parts = [
            f"{len(k)} {what}, first {k[0][:200]!r}"
            for k, what in ((missing, "missing"), (left_over, "left over"))
            if k
        ]
        raise ValueError(f"its tensors aren't the model's: {'; '.join(parts)}")
    for name, t in expected.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"{name!r} of the model is a {type(t).__name__}, not a tensor")
        if t.shape != found[name].shape:
            raise ValueError(f"tensor {name!r} has shape {found[name].shape}, the model {tuple(t.shape)}")
        if t.dtype != found[name].dtype and not {t.dtype, found[name].dtype} <= _FLOATS:
            raise ValueError(f"tensor {name!r} has type {found[name].dtype}, the model {t.dtype}")


def restore(
    model: nn.Module, layers: Iterable[ConvertedLayer], tensors: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> nn.Module:
    """:func:`replace_layers`, then every tensor into its place; :func:`check` first, so that it can't fail half-way."""
    result = replace_layers(model, layers)
    # The model's own state dict carries the versions that some modules ask for (torchvision's MNASNet).
    versioned = result.state_dict()
    versioned.update({**tensors, **{alias: tensors[name] for alias, name in aliases.items()}})
    # assign keeps the types of the file and copies nothing.
    result.load_state_dict(versioned, strict=True, assign=True)
    _tie(result, aliases)
    return result


def _tie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make second names one object again: loading by assignment gave each its own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for alias, name in aliases.items():
        (owner, _, attribute), (first, _, kept) = alias.rpartition("."), name.rpartition(".")
        tensor, other = getattr(modules[first], kept), getattr(modules[owner], attribute)
        # A parameter and a buffer on one storage already share it.
        if isinstance(tensor, nn.Parameter) == isinstance(other, nn.Parameter):
            setattr(modules[owner], attribute, tensor)
