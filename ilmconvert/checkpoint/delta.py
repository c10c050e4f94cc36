"""Deltas: only the tensors of a converted model that differ from its base, the model before the conversion."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.checkpoint import safetensors_io, save_load
from ilmconvert.checkpoint.fingerprint import fingerprint, same_bits
from ilmconvert.checkpoint.metadata import Metadata, parse, refuse_unconverted
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.errors import CheckpointError
from ilmconvert.models.create import ModelSpec, infer_spec
from ilmconvert.surgery.module_state import copy_of, state_of

DELTA_KEY = "ilmconvert_delta"
DELTA_VERSION = 1


@dataclass(frozen=True)
class Delta:
    """What a delta file says of itself.

    Attributes:
        metadata: of the converted model, as in a checkpoint.
        sha256: of the base's tensors, see :func:`ilmconvert.checkpoint.fingerprint.fingerprint`.
        base: how the base is built, if that is known.
        without: tensors of the base that the converted model lacks, beside those of its norms.
    """

    metadata: Metadata
    sha256: str
    base: ModelSpec | None
    without: tuple[str, ...]

    def to_json(self) -> str:
        """JSON text, the same for the same content."""
        data = {
            "format_version": DELTA_VERSION,
            "record": self.metadata.to_dict(),
            "sha256": self.sha256,
            "base": None if self.base is None else self.base.to_dict(),
            "without": list(self.without),
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Delta:
        """Parse and check; raises a ValueError or ModelError that says what is wrong."""
        data = parse(text)
        version = data.get("format_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or not 1 <= version <= DELTA_VERSION:
            raise ValueError(f"delta format {version!r} isn't known to this ilmconvert, which knows {DELTA_VERSION}")
        base, without = data.get("base"), data.get("without")
        if not isinstance(data.get("sha256"), str) or not isinstance(without, list):
            raise ValueError("its metadata is damaged; write the delta again")
        spec = None if base is None else ModelSpec.from_dict(base)
        return cls(Metadata.from_json(json.dumps(data.get("record"))), data["sha256"], spec, tuple(map(str, without)))


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: nn.Module,
    spec: ModelSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write what distinguishes a converted model from its base: ILM Norms, and every other tensor that differs.

    Right after a conversion that is a few per cent of the whole; after fine-tuning all layers it is nearly the whole.

    Args:
        model: the converted model.
        path: the file; an existing one is replaced.
        base: the model before its conversion, with the weights that everybody has.
        spec, provenance: see :func:`ilmconvert.save`.

    Raises:
        CheckpointError: see :func:`ilmconvert.save`.

    >>> import tempfile
    >>> from ilmconvert import convert
    >>> base = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    >>> _ = base[1].running_mean.normal_()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_delta(convert(base), Path(folder) / "small.safetensors", base=base)
    ...     again = apply_delta(base, file)
    >>> x = torch.randn(1, 3, 8, 8)
    >>> torch.equal(again(x), convert(base)(x))
    True
    """
    refuse_unconverted(model)
    tensors, metadata = save_load.contents(model, spec, provenance)
    theirs = {key: t for key, t in state_of(base).items() if isinstance(t, Tensor)}
    unchanged = {k for k, t in _of_base(theirs, metadata).items() if k in tensors and same_bits(tensors[k], t)}
    changed = {k: t for k, t in tensors.items() if k not in unchanged}
    without = [k for k in _of_base(theirs, metadata) if k not in tensors]
    delta = Delta(metadata, fingerprint(base), infer_spec(base), tuple(without))
    return safetensors_io.write(path, changed, {DELTA_KEY: delta.to_json()})


def apply_delta(
    base: nn.Module, path: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> nn.Module:
    """The converted model that :func:`save_delta` was given, from one's own copy of the base, bit for bit.

    Args:
        base: the model before the conversion; it isn't changed, and shares no memory with the result.
        path: the delta.
        device: of the result; by default that of ``base``.

    Returns:
        The model in evaluation mode. One of timm or torchvision is built anew, as :func:`ilmconvert.load` does,
        another one is a copy of ``base``, converted.

    Raises:
        CheckpointError: not a delta, or one for another base.
    """
    delta, changed = read_delta(path)
    theirs = {key: t for key, t in state_of(base).items() if isinstance(t, Tensor)}
    found = fingerprint(base)
    if found != delta.sha256:
        raise CheckpointError(
            f"{path} is for another base{_named(delta)}: its tensors have SHA-256 {delta.sha256[:12]}..., "
            f"these {found[:12]}...; give the model and weights that it was made from"
        )
    kept = {k: t for k, t in _of_base(theirs, delta.metadata).items() if k not in delta.without and k not in changed}
    like = next((t.device for t in theirs.values()), torch.device("cpu"))
    tensors = {k: t.detach().to(device or like, copy=True) for k, t in {**kept, **changed}.items()}
    metadata = delta.metadata
    with save_load.damage(path):
        source = copy_of(base) if metadata.spec is None else ModelSpec.from_dict(metadata.spec)
        save_load.check(source, metadata, {k: Entry(tuple(t.shape), t.dtype) for k, t in tensors.items()})
        return save_load.filled(source, metadata, tensors).to(device or like).eval()


def read_delta(path: str | os.PathLike[str]) -> tuple[Delta, dict[str, Tensor]]:
    """What a delta file says of itself, and its tensors.

    Raises:
        CheckpointError: not such a file.
    """
    header, tensors = safetensors_io.read_all(path)
    if DELTA_KEY not in header:
        raise CheckpointError(f"{path} isn't a delta; a whole checkpoint is used as it is")
    with save_load.damage(path):
        return Delta.from_json(header[DELTA_KEY]), tensors


def _of_base(state: Mapping[str, Tensor], metadata: Metadata) -> dict[str, Tensor]:
    """The base's tensors that may stay: not those of converted norms (their names mean others), one name for each."""
    layers = {name for layer in metadata.layers for name in layer.names}
    return {k: t for k, t in state.items() if k.rpartition(".")[0] not in layers and k not in metadata.aliases}


def _named(delta: Delta) -> str:
    return "" if delta.base is None else f" ({delta.base.library} {delta.base.architecture})"
