"""Save a converted model as one safetensors file with everything needed to build it again, and load it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ilmconvert.checkpoint import restore, safetensors_io
from ilmconvert.checkpoint.build_budget import Budget, build_within_budget
from ilmconvert.checkpoint.metadata import LARGEST_METADATA, METADATA_KEY, Metadata, describe
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.errors import CheckpointError, ModelError
from ilmconvert.surgery.conversion_info import note

if TYPE_CHECKING:
    from ilmconvert.models.create import ModelSpec

_LONGEST_MESSAGE = 1000


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
        spec: how the model was built. By default what :func:`ilmconvert.info` says (of models that
            :func:`ilmconvert.models.create.create_model` built), or what timm stores on its models. It is checked
            against the model. A custom model (not from timm or torchvision) is saved without; load it by
            ``load(path, into=...)``.
        provenance: where the weights come from, as JSON values. By default what
            :func:`ilmconvert.info` says.

    Raises:
        CheckpointError: no ILM Norm in the model, ``spec`` builds something else, or the file can't be written.
    """
    tensors, metadata = contents(model, spec, provenance)
    text = json.dumps(metadata.to_dict(), sort_keys=True, separators=(",", ":"))
    if len(text) > LARGEST_METADATA:
        raise CheckpointError(
            f"the metadata takes {len(text)} characters, of {LARGEST_METADATA}; shorten the provenance"
        )
    return safetensors_io.write(path, tensors, {METADATA_KEY: text})


def load(
    path: str | os.PathLike[str], *, into: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The model that :func:`save` wrote, in evaluation mode, ready to use. Never unpickles, never downloads.

    Args:
        path: the file, or a folder with a ``model.safetensors``, as :func:`ilmconvert.save_pretrained` writes it.
        into: for a custom model (not from timm or torchvision): the same model before (or after) its conversion. It
            is converted in place by the stored plan, and filled. If anything fails it stays as it was.
        device: where the model goes.

    Returns:
        The model; ``into`` itself unless its root is a norm.

    Raises:
        CheckpointError: not such a file, a newer format, truncated, tensors missing or left over, an unknown
            architecture, or ``into`` isn't the model that was saved.
    """
    with safetensors_io.opened(path) as f:
        metadata, entries = _metadata(f.metadata(), path), safetensors_io.entries(f, path)
        source = _spec(metadata, path) if into is None else into
        with damage(path, "" if into is None else "; pass the model that was saved, before its conversion"):
            check(source, metadata, entries)
        tensors = safetensors_io.read(f, path, device)
    with damage(path):
        return filled(source, metadata, tensors).to(device).eval()


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a checkpoint, without its tensors; ``tensors`` holds their count and bytes.

    Raises:
        CheckpointError: see :func:`load`.
    """
    with safetensors_io.opened(path) as f:
        metadata, entries = _metadata(f.metadata(), path), safetensors_io.entries(f, path)
    tensors = {"count": len(entries), "bytes": safetensors_io.total_bytes(entries)}
    return {**metadata.to_dict(), "tensors": tensors}


def contents(
    model: nn.Module, spec: ModelSpec | None, provenance: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors and the metadata that :func:`save` writes."""
    tensors, aliases = _tensors(model)
    return tensors, describe(model, spec, provenance, aliases)


def check(source: nn.Module | ModelSpec, metadata: Metadata, entries: Mapping[str, Entry]) -> None:
    """Whether :func:`filled` will do; nothing is allocated before all shapes are known to fit.

    Raises:
        ModelError, ValueError: says what doesn't fit.
    """
    shapes = (
        restore.skeleton(source) if isinstance(source, nn.Module) else build_within_budget(source, Budget.of(entries))
    )
    restore.check(shapes, metadata.layers, entries, metadata.aliases)


def filled(source: nn.Module | ModelSpec, metadata: Metadata, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model that the metadata describes: ``source`` itself or what it builds, converted, with these tensors."""
    model = source if isinstance(source, nn.Module) else source.build(initialize=False)
    model = restore.restore(model, metadata.layers, tensors, metadata.aliases)
    return note(model, settings=dict(metadata.settings), provenance=dict(metadata.provenance))


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


def _metadata(header: Mapping[str, str] | None, path: str | os.PathLike[str]) -> Metadata:
    if f"{METADATA_KEY}_delta" in (header or {}):
        raise CheckpointError(f"{path} is a delta: apply it to its base with ilmconvert.apply_delta(base, path)")
    if METADATA_KEY not in (header or {}):
        raise CheckpointError(f"{path} wasn't written by ilmconvert; as weights of a source model use --weights {path}")
    assert header is not None
    with damage(path):
        return Metadata.from_json(header[METADATA_KEY])


def _spec(metadata: Metadata, path: str | os.PathLike[str]) -> ModelSpec:
    from ilmconvert.models.create import ModelSpec

    if metadata.spec is None:
        raise CheckpointError(
            f"{path} holds a custom model (not from timm or torchvision); build it and use load(path, into=model)"
        )
    with damage(path):
        return ModelSpec.from_dict(metadata.spec)


@contextmanager
def damage(path: str | os.PathLike[str], cure: str = "") -> Iterator[None]:
    """Turn an error about a file's metadata or shapes into a CheckpointError of one line."""
    try:
        yield
    except (ModelError, ValueError) as e:
        text = " ".join(str(e).split())
        text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
        raise CheckpointError(f"{path}: {text}{cure}") from e
