"""A checkpoint that is to be verified: the model, and what the file says of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert.checkpoint.safetensors_io import checkpoint_file
from ilmconvert.checkpoint.save_load import load, read_header
from ilmconvert.models.weight_files import sha256
from ilmconvert.surgery import plan
from ilmconvert.surgery.converted_layers import ConvertedLayer
from ilmconvert.surgery.group_norm_target import GroupNormConfig
from ilmconvert.surgery.plan_entry import ALREADY_CONVERTED

LEFT_OUT = "left out when the model was converted (include, exclude)"


@dataclass(frozen=True)
class Skipped:
    """A norm that stayed: its place, its class and why."""

    name: str
    source: str
    reason: str


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that was read.

    Attributes:
        path: the file.
        model: what it holds, in evaluation mode.
        header: see :func:`ilmconvert.checkpoint.save_load.read_header`.
        sha256: of the file.
    """

    path: Path
    model: nn.Module
    header: Mapping[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """The architecture, or the class of a custom model."""
        spec = self.header["spec"]
        return str(spec["architecture"]) if spec else type(self.model).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first parameter."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def fine_tuned(self) -> bool:
        """Whether the file says that it was trained after its conversion."""
        return "finetuned" in self.header["provenance"]

    @property
    def bounded(self) -> bool:
        """Whether a layer limits its restoring path."""
        return any(layer.config.bounded for layer in self.layers)

    @property
    def plain(self) -> bool:
        """Whether every converted layer is a plain GroupNorm."""
        return all(isinstance(layer.config, GroupNormConfig) for layer in self.layers)

    @property
    def has_plain(self) -> bool:
        """Whether some converted layer is a plain GroupNorm."""
        return any(isinstance(layer.config, GroupNormConfig) for layer in self.layers)

    @property
    def calibrated(self) -> bool:
        """Whether the file says that its norms were fitted to images after the conversion."""
        return "calibrated" in self.header["settings"]

    @property
    def collapsed(self) -> bool:
        """Whether the file says that its plain layers were ILM Norms."""
        return "collapsed" in self.header["settings"]

    @cached_property
    def layers(self) -> tuple[ConvertedLayer, ...]:
        """The layers that the conversion made."""
        return tuple(ConvertedLayer.from_dict(entry) for entry in self.header["layers"])

    @property
    def converted(self) -> list[str]:
        """Names of the layers that the conversion made."""
        return [layer.name for layer in self.layers]

    @property
    def skipped(self) -> list[Skipped]:
        """The norms that stayed, and why."""
        made = set(self.converted)
        entries = [e for e in plan(self.model) if e.reason != ALREADY_CONVERTED and e.name not in made]
        return [Skipped(e.name, e.source.rsplit(".", 1)[-1], e.reason or e.error or LEFT_OUT) for e in entries]


def open_checkpoint(path: str | Path, into: nn.Module | None = None) -> OpenedCheckpoint:
    """Read a checkpoint, or the one in the folder of a run or of ``save_pretrained``.

    ``into`` is the source of a custom model (not from timm or torchvision), and stays as it is.

    Raises:
        CheckpointError: see :func:`ilmconvert.load`.
    """
    file = checkpoint_file(path)
    model = load(file) if into is None else load(file, into=copy.deepcopy(into))
    return OpenedCheckpoint(file, model, read_header(file), sha256(file))
