"""One safetensors file with everything needed to rebuild a converted model, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ilmconvert import record as records
from ilmconvert.errors import CheckpointError, ModelError
from ilmconvert.files import write_atomically
from ilmconvert.record import METADATA_KEY, Record
from ilmconvert.surgery import rebuild

if TYPE_CHECKING:
    from ilmconvert.models import ModelSpec


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a converted model to one safetensors file that :func:`load` turns into the model again.

    The file holds the tensors and, as metadata, how to build the model: library, architecture, constructor
    arguments, each ILM Norm layer's settings, and the provenance of the weights. The same model gives the same
    bytes. The file appears under its name when it is complete.

    Args:
        model: a model with ILM Norm layers.
        path: the file; its folder must exist. An existing file is replaced.
        spec: how the model was built. By default what :func:`ilmconvert.models.create_model` noted on it, or what
            timm did; it is checked against the model. A model that is in no zoo is saved without: give that one
            to ``load(path, into=...)``.
        provenance: where the weights come from; JSON values. By default what ``create_model`` noted.

    Raises:
        CheckpointError: no ILM Norm in the model, ``spec`` builds something else, or the file can't be written.
    """
    tensors, aliases = _tensors(model)
    record = records.describe(model, spec, provenance, aliases)
    text = json.dumps(record.to_dict(), sort_keys=True, separators=(",", ":"))

    def write(temporary: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(tensors, temporary, metadata={"format": "pt", METADATA_KEY: text})
        except SafetensorError as e:
            raise OSError(f"{e}") from e
        _sort_header(temporary)

    return write_atomically(path, write)


def load(
    path: str | os.PathLike[str], *, into: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The model that :func:`save` wrote, in evaluation mode, ready to use. Never unpickles, never downloads.

    Args:
        path: the file.
        into: for a model that is in no zoo: the same model before (or after) its conversion, which is then
            converted by the stored plan, in place, and filled. If anything fails it stays as it was.
        device: where the model goes.

    Returns:
        The model; ``into`` itself unless its root is a norm.

    Raises:
        CheckpointError: not such a file, a newer format, truncated, tensors missing or left over, an unknown
            architecture, or ``into`` isn't the model that was saved.
    """
    record, tensors = _read(path, device)
    model = _build(record, path) if into is None else into
    try:
        model = rebuild.restore(model, record.layers, tensors, record.aliases)
    except ValueError as e:
        cure = "" if into is None else "; pass the model that was saved, before its conversion"
        raise CheckpointError(f"{path}: {e}{cure}") from e
    model.ilmconvert_settings = dict(record.settings)  # type: ignore[assignment]
    model.ilmconvert_provenance = dict(record.provenance)  # type: ignore[assignment]
    return model.to(device).eval()


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors: the record, and ``tensors`` (count and bytes).

    Raises:
        CheckpointError: see :func:`load`.
    """
    from safetensors.torch import _getdtype

    with _open(path) as f:
        record = _record(f.metadata(), path)
        slices = [f.get_slice(key) for key in f.keys()]  # noqa: SIM118  not a mapping
        sizes = [torch.Size(s.get_shape()).numel() * _getdtype(s.get_dtype()).itemsize for s in slices]
    return {**record.to_dict(), "tensors": {"count": len(sizes), "bytes": sum(sizes)}}


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict without second names of one tensor, and those second names."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, t in model.state_dict().items():
        if not isinstance(t, Tensor):
            raise CheckpointError(f"{name} is a {type(t).__name__}, not a tensor; only tensors can be saved")
        if t.is_meta:
            raise CheckpointError(f"{name} is on the meta device and has no values; load weights first")
        if type(t) is not Tensor and not _has_numbers(t):
            raise CheckpointError(
                f"{name} is a {type(t).__name__}, not a plain tensor; save the model before it is quantised or sharded"
            )
        key = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else (name,)
        if key in kept:
            aliases[name] = kept[key]
        else:
            kept[key] = name
            tensors[name] = t.detach()
    return _without_overlap(tensors), aliases


def _has_numbers(t: Tensor) -> bool:
    """Whether ``t`` has its numbers in memory of its own; wrappers (quantised, sharded tensors) have them elsewhere."""
    try:
        return bool(t.data_ptr()) or not t.numel()
    except RuntimeError:
        return False


def _without_overlap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors; views into a storage that another tensor uses, too, become copies."""
    storages: set[int] = set()
    result = {}
    for name, t in tensors.items():
        storage = t.untyped_storage().data_ptr()
        result[name] = t.clone(memory_format=torch.contiguous_format) if storage in storages else t.contiguous()
        storages.add(storage)
    return result


def _sort_header(path: Path) -> None:
    """Sort the header's entries: the library writes the metadata in an order that changes from run to run."""
    with open(path, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            f.seek(8)
            f.write(text.ljust(size))


def _open(path: str | os.PathLike[str]) -> Any:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "doesn't exist"
        raise CheckpointError(f"{path} {what}; give the .safetensors file that ilmconvert wrote")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as e:
        message = f"{path} can't be read as safetensors ({e}): it is truncated, damaged or of another kind; "
        raise CheckpointError(message + "copy or convert it again") from e


def _record(metadata: Mapping[str, str] | None, path: str | os.PathLike[str]) -> Record:
    if METADATA_KEY not in (metadata or {}):
        raise CheckpointError(f"{path} wasn't written by ilmconvert; as weights of a source model use --weights {path}")
    assert metadata is not None
    try:
        return Record.from_json(metadata[METADATA_KEY])
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}") from e


def _read(path: str | os.PathLike[str], device: torch.device | str) -> tuple[Record, dict[str, Tensor]]:
    from safetensors import SafetensorError

    with _open(path) as f:
        record = _record(f.metadata(), path)
        try:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, RuntimeError, ValueError) as e:
            raise CheckpointError(f"{path}: a tensor can't be read ({e}); copy or convert it again") from e
    # A copy even on the CPU: safetensors maps the file, so its tensors are unaligned (matrix products then round
    # otherwise than in the saved model) and fail if somebody truncates it.
    return record, {key: t.to(device, copy=True) for key, t in tensors.items()}


def _build(record: Record, path: str | os.PathLike[str]) -> nn.Module:
    from ilmconvert.models import ModelSpec

    if record.spec is None:
        raise CheckpointError(f"{path} holds a model of no zoo: build it yourself and use load(path, into=model)")
    try:
        return ModelSpec.from_dict(record.spec).build(initialize=False)
    except ModelError as e:
        raise CheckpointError(f"{path}: {e}") from e
