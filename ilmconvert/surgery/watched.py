"""Reads of a norm's values by others, while a model runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from ilmconvert.surgery.readers import VALUES


class Read(NamedTuple):
    """A value of a norm that other code asked for; ``str()`` of it says so.

    Attributes:
        norm: the norm's name in the model.
        attribute: what was read.
        reader: the name of the module whose code it was; None for a function.
        code: that code, and where it stands.
    """

    norm: str
    attribute: str
    reader: str | None
    code: str

    def __str__(self) -> str:
        where = "" if self.reader is None else f" of {self.reader or 'the root'}"
        return f"{self.code}{where} reads {self.attribute} of {self.norm}"


@contextmanager
def watched(model: nn.Module, norms: Mapping[str, nn.Module]) -> Iterator[list[Read]]:
    """While entered, the reads of values of ``norms`` by other code than their own are written down.

    Args:
        model: a copy that nobody else uses: its norms get other classes for the time.
        norms: modules of it by name.

    >>> class Gate(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.bn = nn.BatchNorm2d(2)
    ...     def forward(self):
    ...         return self.bn.weight.sum()
    >>> model = Gate()
    >>> with watched(model, {"bn": model.bn}) as reads:
    ...     _ = model()
    >>> reads[0].norm, reads[0].attribute, reads[0].reader
    ('bn', 'weight', '')
    """
    names = {id(module): name for name, module in model.named_modules()}
    reads: list[Read] = []
    classes = {module: type(module) for module in norms.values()}

    def note(norm: nn.Module, attribute: str, frame: FrameType) -> None:
        reader = frame.f_locals.get("self")
        if reader is norm or frame.f_globals.get("__name__", "").startswith("torch.nn.modules."):
            return
        code = f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        reads.append(Read(names[id(norm)], attribute, names.get(id(reader)), code))

    try:
        for module, cls in classes.items():
            module.__class__ = _watching(cls, note)
        yield reads
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


def _watching(cls: type[nn.Module], note: Any) -> type[nn.Module]:
    def read(self: nn.Module, name: str) -> Any:
        if name in VALUES:
            note(self, name, sys._getframe(1))
        return cls.__getattribute__(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": read, "__module__": cls.__module__})
