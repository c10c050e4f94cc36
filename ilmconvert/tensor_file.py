"""Reading safetensors files that somebody else may have written: sizes first, values when they are known to fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.errors import CheckpointError

#: Bytes of JSON before the tensors. Every tensor takes about a hundred; Python's objects take several times as much.
LARGEST_HEADER = 2 << 20


class Entry(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The open file, as ``safetensors.safe_open`` gives it.

    Raises:
        CheckpointError: it isn't there or isn't such a file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "doesn't exist"
        raise CheckpointError(f"{path} {what}; give the .safetensors file that ilmconvert wrote")
    try:
        _check_header_size(path)
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as e:
        reason = " ".join(str(e)[:500].split())
        message = f"{path} can't be read as safetensors ({reason}): it is truncated, damaged or of another kind; "
        raise CheckpointError(message + "copy or convert it again") from e
    with file as f:
        yield f


def entries(f: Any, path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Shapes and types of all tensors of an open file.

    Raises:
        CheckpointError: a type that torch doesn't have.
    """
    from safetensors.torch import _getdtype

    found = {}
    for key in f.keys():  # noqa: SIM118  not a mapping
        tensor = f.get_slice(key)
        try:
            found[key] = Entry(tuple(tensor.get_shape()), _getdtype(tensor.get_dtype()))
        except KeyError as e:
            raise CheckpointError(f"{path}: tensor {key[:200]!r} has type {tensor.get_dtype()}; convert again") from e
    return found


def read(f: Any, path: str | os.PathLike[str], device: torch.device | str) -> dict[str, Tensor]:
    """All tensors of an open file.

    Raises:
        CheckpointError: one can't be read.
    """
    from safetensors import SafetensorError

    try:
        # A copy even on the CPU: safetensors maps the file, so its tensors are unaligned (matrix products then round
        # otherwise than in the saved model) and fail if somebody truncates it.
        return {key: f.get_tensor(key).to(device, copy=True) for key in f.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, RuntimeError, ValueError) as e:
        reason = " ".join(str(e)[:500].split())
        raise CheckpointError(f"{path}: a tensor can't be read ({reason}); copy or convert it again") from e


def _check_header_size(path: str | os.PathLike[str]) -> None:
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes, of at most {LARGEST_HEADER}")


def total_bytes(found: Mapping[str, Entry]) -> int:
    """Size of all tensors."""
    return sum(entry.nbytes for entry in found.values())
