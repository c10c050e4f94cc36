"""Write safetensors files whole, and read them with a check of all sizes first, since they may come from elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.checkpoint.atomic_write import write_atomically
from ilmconvert.errors import CheckpointError

#: Bytes of JSON before the tensors. Every tensor takes about a hundred; Python's objects take several times as much.
LARGEST_HEADER = 2 << 20
#: What stands for a folder that was published or is to be; timm's and the hub's name.
FOLDER_FILE = "model.safetensors"
#: What stands for the folder of a fine-tuning run.
RUN_FILE = "best.safetensors"


class Entry(NamedTuple):
    """Shape and type of a tensor, from the header of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a file whole or not at all, the same bytes for the same content.

    Raises:
        CheckpointError: it can't be written.
    """

    def fill(temporary: Path) -> None:
        from safetensors.torch import save_file

        save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        _sort_header(temporary)

    return write_atomically(path, fill)


def _sort_header(path: Path) -> None:
    """Sort the header's entries: the library writes the metadata in an order that changes from run to run."""
    with open(path, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > LARGEST_HEADER:
            raise CheckpointError(f"the model has too many tensors: their names and shapes take {size} bytes")
        header = json.loads(f.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            f.seek(8)
            f.write(text.ljust(size))


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file that a path stands for: of a folder that was published or is that of a run, the one in it.

    >>> str(checkpoint_file("resnet50-ilm_gn.safetensors"))
    'resnet50-ilm_gn.safetensors'
    """
    inside = (Path(path) / name for name in (FOLDER_FILE, RUN_FILE))
    return next((file for file in inside if file.is_file()), Path(path))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The open file, as ``safetensors.safe_open`` gives it; of a folder, the :func:`checkpoint_file`.

    Raises:
        CheckpointError: it isn't there or isn't such a file.
    """
    from safetensors import SafetensorError, safe_open

    path = checkpoint_file(path)
    if not path.is_file():
        what = f"is a folder without {FOLDER_FILE} or {RUN_FILE}" if path.is_dir() else "doesn't exist"
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


def read_all(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, whoever wrote it.

    Raises:
        CheckpointError: see :func:`opened` and :func:`read`.
    """
    with opened(path) as f:
        return dict(f.metadata() or {}), read(f, path, "cpu")


def _check_header_size(path: str | os.PathLike[str]) -> None:
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes, of at most {LARGEST_HEADER}")


def total_bytes(found: Mapping[str, Entry]) -> int:
    """Size of all tensors."""
    return sum(entry.nbytes for entry in found.values())
