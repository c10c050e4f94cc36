"""Ultralytics: networks that hold converted layers are loaded with them, and fused around them.

A YOLO is built anew from its yaml before it is trained, and takes those weights of the old one whose names and shapes
fit; ``weight`` and ``bias`` of a converted layer do, and mean other things than those of a BatchNorm. Before it
predicts, is validated or exported, it folds its BatchNorms into convolutions. Both are methods of one class, which this
module changes when it is imported, see :mod:`ilmconvert.export.import_hook`; without converted layers they do what they
did.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from ultralytics.nn.modules import Conv, ConvTranspose, RepConv
from ultralytics.nn.modules.block import RepVGGDW
from ultralytics.nn.tasks import BaseModel

from ilmconvert.errors import ModelError
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.replacement import replace_modules
from ilmconvert.surgery.sources import find_source
from ilmconvert.surgery.targets import config_of

#: What ``fuse`` folds a BatchNorm in, or merges branches of.
_FUSED = (Conv, ConvTranspose, RepConv, RepVGGDW)

_load, _fuse = BaseModel.load, BaseModel.fuse


@functools.wraps(_load)
def _load_with_layers(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    _take_layers(self, source)
    result = _load(self, weights, *args, **kwargs)
    theirs, modules = _places(source), dict(self.named_modules(remove_duplicate=False))
    for name in theirs:
        if name in modules and find_source(modules[name]) is not None:
            raise ModelError(f"{name} has other sizes in the weights, where it is converted; load them, then convert")
    return result


def _take_layers(model: nn.Module, source: nn.Module) -> None:
    """Put copies of the converted layers of ``source`` in the places of the same names and sizes of ``model``."""
    theirs, modules = _places(source), dict(source.named_modules(remove_duplicate=False))
    for name in _places(model):
        if name in modules and name not in theirs:
            raise ModelError(f"{name} is converted, and in the weights it isn't: load the weights, then convert")
    if not theirs:
        return
    memo: dict[int, Any] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    places = dict(model.named_modules(remove_duplicate=False))
    for name, layer in theirs.items():
        old = places.get(name)
        if old is None or _channels(old) != _channels(layer):
            continue
        new = copy.deepcopy(layer, memo).train(old.training)
        for parameter in new.parameters():
            parameter.requires_grad_(all(p.requires_grad for p in old.parameters()))
        for t in old.parameters():
            new.to(t.device, t.dtype)
        replacements[old] = new
    replace_modules(model, replacements)
    found = noted(source)
    note(model, settings=found.settings, provenance=found.provenance)


def _places(model: nn.Module) -> dict[str, nn.Module]:
    """The converted layers by all their names."""
    return {name: model.get_submodule(name) for layer in layers_of(model) for name in layer.names}


def _channels(module: nn.Module) -> int | None:
    config, describe = config_of(module), find_source(module)
    if config is not None:
        return config.num_channels
    return None if describe is None else describe(module).num_channels


@functools.wraps(_fuse)
def _fuse_around_layers(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not layers_of(self):
        return _fuse(self, *args, **kwargs)
    # Older versions take ``verbose`` alone, newer ones the size of the images as well; so does ``info``.
    asked = inspect.signature(_fuse).bind(self, *args, **kwargs)
    asked.apply_defaults()
    told = dict(list(asked.arguments.items())[1:])
    with _set_aside(self):
        _fuse(self, **{**told, "verbose": False})
    self.info(**told)
    return self


@contextmanager
def _set_aside(model: Any) -> Iterator[None]:
    """Take the modules whose norm is converted out of ``model``, and describe nothing meanwhile."""
    aside = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent._modules.items()
        if isinstance(child, _FUSED) and layers_of(child)
    ]
    for parent, name, _ in aside:
        parent._modules[name] = nn.Identity()
    vars(model)["info"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del vars(model)["info"]
        for parent, name, child in aside:
            # Where fuse removed what held it, the parent stands nowhere any more.
            parent._modules[name] = child


BaseModel.load, BaseModel.fuse = _load_with_layers, _fuse_around_layers
