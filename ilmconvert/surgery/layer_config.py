"""What a conversion needs to know of the layers that it makes: a frozen class of settings for each kind of layer."""

from __future__ import annotations

import dataclasses
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from ilmconvert.surgery.settings import Settings
from ilmconvert.surgery.sources import NormDescription

C = TypeVar("C", bound="LayerConfig")


@dataclass(frozen=True)
class LayerConfig(ABC):
    """The settings of a layer that can take a norm's place; each kind of layer derives a frozen dataclass from it.

    Fields are numbers, flags, and tuples of numbers. Those without a default stand in every checkpoint, the others
    where they differ from their default.

    Attributes:
        kind: what a checkpoint calls the kind of layer.
        title: what people call it.
        num_channels: C.
        num_groups: of the normalisation, 1 where the layer has none.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    num_channels: int
    num_groups: int

    @classmethod
    @abstractmethod
    def for_source(cls, source: NormDescription, num_groups: int, settings: Settings) -> LayerConfig:
        """The settings of the layer in the place of ``source``, with so many groups."""

    @classmethod
    @abstractmethod
    def of(cls, layer: nn.Module) -> LayerConfig | None:
        """The settings of a layer that a conversion made; None for every other module."""

    @abstractmethod
    def build(
        self,
        *,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """A new layer. One that gets a ``drop`` or an ``act`` applies them to its result, under these names.

        Raises:
            ValueError: the settings don't fit each other.
        """

    @abstractmethod
    def initial_values(
        self, source: NormDescription, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """The layer's tensors in the place of ``source``, by name.

        Args:
            source: what the norm computes.
            seed: of random values, where there are some.
            dtype: in which the values will be stored; they come in float64, on the CPU.
        """

    @abstractmethod
    def is_exact(self, source: NormDescription) -> bool:
        """Whether the layer with its initial values computes what ``source`` does, for every input."""

    @property
    def takes_single_instances(self) -> bool:
        """Whether the layer takes an instance without a batch dimension where its source does."""
        return False

    @property
    def bounded(self) -> bool:
        """Whether unusual instances are limited on purpose."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        data: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                data[field.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError: an entry is missing, or one too many.
            ValueError: an entry is of another type.
        """
        fields = dataclasses.fields(cls)
        names = {field.name for field in fields}
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        if odd := (data.keys() - names - {"kind"}) | (needed - data.keys()):
            raise KeyError(min(odd))
        values = {name: data[name] for name in names & data.keys()}
        for name, value in values.items():
            if not _CHECKS[_types(cls)[name]](value):
                raise ValueError(f"{name} is {reprlib.repr(value)}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**settings)


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


# A layer with settings of another type may be built and fail when it is used.
_CHECKS: dict[Any, Callable[[Any], bool]] = {
    int: _is_integer,
    int | None: lambda value: value is None or _is_integer(value),
    bool: lambda value: type(value) is bool,
    float: _is_number,
    float | None: lambda value: value is None or _is_number(value),
    tuple[float, ...] | None: lambda value: value is None or (isinstance(value, list) and all(map(_is_number, value))),
}


@cache
def _types(cls: type[LayerConfig]) -> dict[str, Any]:
    return get_type_hints(cls)
