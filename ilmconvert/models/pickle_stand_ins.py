"""Stand-ins for what training scripts pickle beside tensors. None of them does anything but hold numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NUMBER = re.compile(r"[biufc](1|2|4|8|16)")


class Foreign:
    """Stands for an object of a class that isn't imported; what the object holds is left unread."""

    name = "unknown"

    def __init__(self, *args: Any) -> None:
        """Whatever the class would be called with."""

    def __setstate__(self, state: Any) -> None:
        """Whatever the object held."""


class NumpyArray(Foreign):
    """Stands for a ``numpy.ndarray``; ``tensor`` is None where it doesn't hold numbers."""

    name = "numpy.ndarray"
    tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, data = state
        flat = _numbers(kind, data)
        if flat is not None and column_major:
            self.tensor = flat.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
        elif flat is not None:
            self.tensor = flat.reshape(shape)


class _NumpyType(Foreign):
    """Stands for a ``numpy.dtype``: its kind and size ("f8"), and its byte order."""

    name = "numpy.dtype"

    def __init__(self, code: Any = "", *args: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _numbers(kind: Any, data: Any) -> Tensor | None:
    """A flat tensor of the numbers in ``data``; None where they aren't plain numbers."""
    import numpy as np

    if not (isinstance(kind, _NumpyType) and isinstance(data, bytes) and _NUMBER.fullmatch(kind.code)):
        return None
    array = np.frombuffer(data, np.dtype(f"{'>' if kind.order == '>' else '<'}{kind.code}"))
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except TypeError:  # a type that torch doesn't have
        return None


def _scalar(kind: Any, data: Any = b"") -> Any:
    numbers = _numbers(kind, data)
    return Foreign() if numbers is None else numbers[0].item()


def _array(*args: Any) -> NumpyArray:
    return NumpyArray()


def _dict(*args: Any) -> dict[Any, Any]:
    return {}


def _list(*args: Any) -> list[Any]:
    return []


#: By the name in the file. Classes that aren't here get a :class:`Foreign` of their own.
STAND_INS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    "numpy.dtype": _NumpyType,
    "numpy.ndarray": NumpyArray,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
}
