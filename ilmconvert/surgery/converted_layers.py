"""The layers of a conversion as JSON values, and layers without values from these."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.refuse_wrapped import refuse_other
from ilmconvert.surgery.replacement import replaced
from ilmconvert.surgery.source_state import SourceState, accept_source_state, source_state_of
from ilmconvert.surgery.sources import find_source
from ilmconvert.surgery.targets import config_of, read_config


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that a conversion made.

    Attributes:
        name: its dotted path in the model; "" for the root.
        aliases: other paths of the same layer.
        config: its settings.
    """

    name: str
    aliases: tuple[str, ...]
    config: LayerConfig

    @property
    def names(self) -> tuple[str, ...]:
        """All paths."""
        return (self.name, *self.aliases)

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON values."""
        return {"name": self.name, "aliases": list(self.aliases), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> ConvertedLayer:
        """The inverse of :meth:`to_dict`, for what was read from a file.

        Raises:
            ValueError: it isn't that.
        """
        fits = (
            isinstance(data, dict)
            and isinstance(data.get("name"), str)
            and isinstance(data.get("aliases"), list)
            and all(isinstance(alias, str) for alias in data["aliases"])
            and isinstance(data.get("config"), dict)
        )
        try:
            if not fits:
                raise KeyError
            return cls(data["name"], tuple(data["aliases"]), read_config(data["config"]))
        except KeyError:
            text = f"its metadata is damaged at layer {reprlib.repr(data)}; convert the model again"
            raise ValueError(text) from None
        except ValueError as e:
            raise ValueError(f"the settings of {reprlib.repr(data['name'])} are damaged: {e}") from e


def layers_of(model: nn.Module) -> tuple[ConvertedLayer, ...]:
    """Every layer that a conversion made, in the model's own order."""
    refuse_other(model)
    names: dict[int, list[str]] = {}
    configs: dict[int, LayerConfig] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        config = config_of(module)
        if config is not None:
            names.setdefault(id(module), []).append(name)
            configs[id(module)] = config
    return tuple(ConvertedLayer(names[key][0], tuple(names[key][1:]), config) for key, config in configs.items())


def replace_layers(model: nn.Module, layers: Iterable[ConvertedLayer]) -> nn.Module:
    """Put a layer without values in every named place of ``model``, in place; returns the root.

    A layer comes wherever the model holds what it replaces, and takes over the hooks and attributes of that.

    Raises:
        ValueError: a name isn't there or isn't a norm of so many channels, or the model holds one in a place that can't
            be written; ``model`` is as it was.
    """
    with layers_replaced(model, layers) as root:
        return root


@contextmanager
def layers_replaced(model: nn.Module, layers: Iterable[ConvertedLayer]) -> Iterator[nn.Module]:
    """:func:`replace_layers`, undone if the block raises."""
    new = _empty_layers(model, layers)
    with ExitStack() as stack:
        try:
            root = stack.enter_context(replaced(model, new))
        except ConversionError as e:
            raise ValueError(str(e)) from e
        yield root


def _empty_layers(model: nn.Module, layers: Iterable[ConvertedLayer]) -> dict[nn.Module, nn.Module]:
    """The layer without values for each module that one replaces."""
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[nn.Module, nn.Module] = {}
    done = set[str]()
    for seed, entry in enumerate(layers):
        first = modules.get(entry.name)
        layer = _empty_layer(entry, first, seed)
        for name in entry.names:
            if name not in modules:
                raise ValueError(f"the model has no module {name!r}")
            if modules[name] is not first:
                raise ValueError(f"{name!r} and {entry.name!r} are one layer in the file and two in the model")
            if name in done:
                raise ValueError(f"{name!r} is in the file twice")
            done.add(name)
        assert first is not None
        if first in new:
            raise ValueError(f"{entry.name!r} is one layer in the model and two in the file")
        new[first] = layer
    return new


def _empty_layer(entry: ConvertedLayer, module: nn.Module | None, seed: int) -> nn.Module:
    """A layer on the meta device for ``module``, with the latter's fused modules."""
    if module is None:
        raise ValueError(f"the model has no module {entry.name!r}")
    config, hook = config_of(module), source_state_of(module)
    if config is not None:
        channels = config.num_channels
        fused = {name: child for name, child in module.named_children() if name in ("drop", "act")}
    else:
        describe = find_source(module)
        if describe is None:
            raise ValueError(f"{entry.name!r} is a {type(module).__name__}, not a layer that can be converted")
        source = describe(module)
        channels = source.num_channels
        fused = {name: part for name, part in (("drop", source.drop), ("act", source.act)) if part is not None}
        hook = hook or SourceState.of(source, seed, module)
    # Bounds every size that the settings imply before anything is allocated.
    if entry.config.num_channels != channels:
        raise ValueError(f"{entry.name!r} has {channels} channels, not {entry.config.num_channels!r}")
    try:
        layer = entry.config.build(drop=fused.get("drop"), act=fused.get("act"), device="meta")
    except (TypeError, ValueError) as e:
        raise ValueError(f"the settings of {entry.name!r} are damaged: {e}") from e
    if hook is not None:
        accept_source_state(layer, hook)
    adopt(layer, module)
    return layer
