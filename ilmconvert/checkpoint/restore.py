"""Load the tensors of a file into a model: check first by shapes alone that they fit, then copy the values."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn

from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.surgery.converted_layers import layers_replaced, replace_layers
from ilmconvert.surgery.input_standardization import remove
from ilmconvert.surgery.module_state import all_or_nothing, put_state, state_of

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def check(model: nn.Module, metadata: Metadata, entries: Mapping[str, Entry]) -> None:
    """Whether :func:`restore` would fit a model like this one, which has no values and is used up here.

    Raises:
        ValueError: names the layer or tensor that doesn't fit.
    """
    found = dict(entries)
    for alias, name in metadata.aliases.items():
        if name not in entries:
            raise ValueError(f"tensor {name!r}, of which {alias!r} is a second name, is missing")
        found[alias] = entries[name]
    state = state_of(replace_layers(model, metadata.layers))
    expected = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    _check_names("tensors", expected.keys(), found.keys())
    _check_names("other entries", state.keys() - expected.keys(), metadata.extra.keys())
    if metadata.standardized_input is not None:
        metadata.standardized_input.put(model)
    for name, t in expected.items():
        if t.shape != found[name].shape:
            raise ValueError(f"tensor {name!r} has shape {found[name].shape}, the model {tuple(t.shape)}")
        if t.dtype != found[name].dtype and not {t.dtype, found[name].dtype} <= _FLOATS:
            raise ValueError(f"tensor {name!r} has type {found[name].dtype}, the model {t.dtype}")


def _check_names(what: str, expected: Set[str], found: Set[str]) -> None:
    missing, left_over = sorted(expected - found), sorted(found - expected)
    parts = [
        f"{len(names)} {how}, first {names[0][:200]!r}"
        for how, names in (("missing", missing), ("left over", left_over))
        if names
    ]
    if parts:
        raise ValueError(f"its {what} aren't the model's: {'; '.join(parts)}")


def restore(model: nn.Module, metadata: Metadata, tensors: Mapping[str, Tensor]) -> nn.Module:
    """:func:`replace_layers`, then every tensor into its place; if that fails, the model is as it was.

    Raises:
        ValueError: :func:`check` would have raised it, or a module has a way of its own of loading its state.
    """
    with all_or_nothing(model), layers_replaced(model, metadata.layers) as result:
        # The model's own state carries the versions that some modules ask for (torchvision's MNASNet).
        versioned = state_of(result)
        versioned.update(
            {**tensors, **{alias: tensors[name] for alias, name in metadata.aliases.items()}, **metadata.extra}
        )
        put_state(result, versioned)
        _tie(result, metadata.aliases)
        remove(result)
        if metadata.standardized_input is not None:
            metadata.standardized_input.put(result)
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
