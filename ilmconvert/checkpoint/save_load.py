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
from ilmconvert.checkpoint.metadata import LARGEST_METADATA, METADATA_KEY, Metadata, describe, refuse_unconverted
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.checkpoint.stored_state import json_of, tensors_of
from ilmconvert.errors import CheckpointError, ModelError, one_line
from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.module_state import copy_of

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
        model: a model with ILM Norm layers, or one that :func:`ilmconvert.standardize_input` was given.
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
    refuse_unconverted(model)
    return save_any(model, path, spec=spec, provenance=provenance)


def save_any(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """:func:`save`, also of a model in which nothing is ours, such as a baseline of a run."""
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
        path: the file, or a folder: one that :func:`ilmconvert.save_pretrained` wrote, or of a fine-tuning run, whose
            best checkpoint is taken.
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
    tensors, aliases = tensors_of(model)
    return tensors, describe(model, spec, provenance, aliases, json_of(model))


def check(source: nn.Module | ModelSpec, metadata: Metadata, entries: Mapping[str, Entry]) -> None:
    """Whether :func:`filled` will do; nothing is allocated before all shapes are known to fit.

    Raises:
        ModelError, ValueError: says what doesn't fit.
    """
    if isinstance(source, nn.Module):
        shapes = copy_of(source, values=False)
    else:
        shapes = build_within_budget(source, Budget.of(entries))
    restore.check(shapes, metadata, entries)


def filled(source: nn.Module | ModelSpec, metadata: Metadata, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model that the metadata describes: ``source`` itself or what it builds, converted, with these tensors."""
    model = source if isinstance(source, nn.Module) else source.build(initialize=False)
    model = restore.restore(model, metadata, tensors)
    return note(model, settings=dict(metadata.settings), provenance=dict(metadata.provenance))


def _metadata(header: Mapping[str, str] | None, path: str | os.PathLike[str]) -> Metadata:
    if f"{METADATA_KEY}_delta" in (header or {}):
        raise CheckpointError(
            f"{path} is a delta: make a checkpoint of it by ilmconvert apply {path} (apply_delta in Python)"
        )
    if METADATA_KEY not in (header or {}):
        raise CheckpointError(
            f"{path} wasn't written by ilmconvert; if it holds weights, name the model that they are of: "
            f"ilmconvert MODEL --weights {path}"
        )
    assert header is not None
    with damage(path):
        return Metadata.from_json(header[METADATA_KEY])


def _spec(metadata: Metadata, path: str | os.PathLike[str]) -> ModelSpec:
    from ilmconvert.models.create import ModelSpec

    if metadata.spec is None:
        raise CheckpointError(
            f"{path} holds a custom model (not from timm or torchvision); build it in Python and use "
            "ilmconvert.load(path, into=model)"
        )
    with damage(path):
        return ModelSpec.from_dict(metadata.spec)


@contextmanager
def damage(path: str | os.PathLike[str], cure: str = "") -> Iterator[None]:
    """Turn an error about a file's metadata or shapes into a CheckpointError of one line."""
    try:
        yield
    except (ModelError, ValueError) as e:
        text = one_line(e)
        text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
        raise CheckpointError(f"{path}: {text}{cure}") from e
