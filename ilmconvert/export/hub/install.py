"""ILM Norm layers in the places of a base that timm has built, be it whole or one of timm's feature extractors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from timm.models import FeatureGraphNet, FeatureHookNet
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ilmconvert.errors import ModelError
from ilmconvert.surgery.converted_layers import ConvertedLayer, replace_layers
from ilmconvert.surgery.input_standardization import InputStandardization
from ilmconvert.surgery.sources import find_source

Layers = Sequence[ConvertedLayer]
#: timm's wrappers that may hold the whole network as their only child.
_AROUND = (FeatureGraphNet, FeatureGetterNet, FeatureHookNet)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's state without that of its children (a fused activation may have weights of its own)."""
    return {key: t for key, t in module.state_dict().items() if "." not in key}


def check(whole: nn.Module, layers: Layers, state: Mapping[str, Tensor] | None, other: tuple[str, ...]) -> None:
    """Put the layers into the skeleton of a base, in place, and see that the file's tensors are those of the result.

    Args:
        whole: the skeleton, not wrapped.
        layers: as in a checkpoint's metadata.
        state: the file's tensors; None for a new network.
        other: what the names of parts begin with that the caller wants otherwise than in the file, a head for instance.

    Raises:
        ModelError: the layers don't fit the base, or the tensors don't fit the layers.
    """
    names = dict(whole.named_modules(remove_duplicate=False)).keys()
    there = [made for made in layers if made.name in names or not made.name.startswith(other)]
    _replace(whole, there)
    if state is None:
        return
    expected = whole.state_dict()
    for what, keys in (("missing", expected.keys() - state.keys()), ("left over", state.keys() - expected.keys())):
        keys = {key for key in keys if not key.startswith(other) and not key.endswith("num_batches_tracked")}
        if keys:
            raise ModelError(f"the weights don't fit config.json: {len(keys)} tensors {what}, first {min(keys)!r}")
    for key in (f"{made.name}.{leaf}" for made in there for leaf in own_tensors(whole.get_submodule(made.name))):
        if expected[key].shape != state[key].shape:
            shapes = f"{tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
            raise ModelError(f"the weights don't fit config.json: {key} has shape {shapes}")


def install(model: nn.Module, whole: nn.Module, layers: Layers, state: Mapping[str, Tensor] | None) -> nn.Module:
    """Put the layers into ``model``, in place, with their values.

    Args:
        model: the base as timm built it, perhaps a feature extractor, which holds fewer modules under other names.
        whole: the base, not wrapped; only its modules' names and types are looked at.
        layers: as in a checkpoint's metadata, with names in ``whole``.
        state: the layers' values by their names in ``whole``; None for a new network.

    Raises:
        ModelError: the layers don't fit.
    """
    places = _places(model)
    old = dict(model.named_modules(remove_duplicate=False))
    _check_all_known(model, whole, places)
    here = [[places[_flat(name)] for name in made.names if _flat(name) in places] for made in layers]
    # Extractors leave out what no feature needs, or put an identity there.
    found = [(m, n) for m, n in zip(layers, here, strict=True) if n and not isinstance(old[n[0]], nn.Identity)]
    model = _replace(model, [replace(made, name=names[0], aliases=tuple(names[1:])) for made, names in found])
    for made, (name, *_) in found:
        layer = model.get_submodule(name)
        _fill(layer, made, state, like=old[name])
    return model


def standardize(model: nn.Module, made: InputStandardization) -> None:
    """Put the standardisation of each image into ``model``, in place.

    Raises:
        ModelError: there is no such layer.
    """
    try:
        replace(made, layer=_places(model).get(_flat(made.layer), made.layer)).put(model)
    except ValueError as error:
        raise ModelError(f"config.json: {error}") from error


def _places(model: nn.Module) -> dict[str, str]:
    """Names of the modules, by the flattened name that each has in the whole network."""
    children = [name for name, _ in model.named_children()]
    around = f"{children[0]}." if isinstance(model, _AROUND) and len(children) == 1 else ""
    return {_flat(name.removeprefix(around)): name for name, _ in model.named_modules(remove_duplicate=False)}


def _flat(name: str) -> str:
    """timm's extractors call what was ``layer1.0`` ``layer1_0``."""
    return name.replace(".", "_")


def _check_all_known(model: nn.Module, whole: nn.Module, places: Mapping[str, str]) -> None:
    """Refuse a norm whose name in the whole network can't be told: it would silently stay what it was."""
    known = {places.get(_flat(name)) for name, _ in whole.named_modules(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in known and find_source(module) is not None:
            what = f"{type(model).__name__} renames the norm {name!r} in a way not known here"
            raise ModelError(f"{what}; build it without features_only and use its forward_intermediates")


def _replace(model: nn.Module, layers: Layers) -> nn.Module:
    try:
        return replace_layers(model, layers)
    except ValueError as error:
        raise ModelError(f"the layers in config.json don't fit the base: {error}") from error


def _fill(layer: nn.Module, made: ConvertedLayer, state: Mapping[str, Tensor] | None, *, like: nn.Module) -> None:
    """Values for a layer on the meta device, of the type and on the device of the norm that was there."""
    first = next((t for t in own_tensors(like).values() if t.is_floating_point()), torch.empty(0))
    values = own_tensors(made.config.build()) if state is None else state
    prefix = "" if state is None else f"{made.name}."
    for key in own_tensors(layer):
        value = values[f"{prefix}{key}"].to(first.device, first.dtype, copy=True)
        if key in layer._buffers:
            layer._buffers[key] = value
        else:
            layer.register_parameter(key, nn.Parameter(value, requires_grad=layer.get_parameter(key).requires_grad))
