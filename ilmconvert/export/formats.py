"""Export converted models for inference: ONNX and torch.export files with dynamic batch and image size."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert.checkpoint.atomic_write import write_atomically
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import ExportError
from ilmconvert.export.fold import fold

FORMATS = ("onnx", "pt2")


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    dynamic: bool = True,
    size: int | Sequence[int] | None = None,
) -> Path:
    """Write ``model`` in evaluation mode as an ONNX file or a ``torch.export`` archive.

    Constant parts of the meta-networks are folded first (:func:`ilmconvert.export.fold.fold`).

    Args:
        model: takes one (N, C, H, W) tensor. It isn't changed.
        path: the file; it appears under this name when it is complete.
        format: "onnx" (needs ``pip install 'ilmconvert[export]'``) or "pt2".
        dynamic: leave batch size, height and width open; otherwise they are fixed to those of the example input.
        size: of the example input, see :func:`ilmconvert.data.example_inputs.example_inputs`.

    Raises:
        ExportError: a missing extra, or a model that can't be traced or has a fixed input size.
        CheckpointError: the file can't be written.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; use one of {', '.join(FORMATS)}")
    folded = fold(model)
    example = example_inputs(folded, batch_size=2, size=size)
    shapes = _dynamic_shapes(example) if dynamic else None
    program = _trace_onnx(folded, example, shapes) if format == "onnx" else _trace(folded, example, shapes)

    def write(temporary: Path) -> None:
        if format == "onnx":
            program.save(str(temporary))
        else:
            with open(temporary, "wb") as f:
                torch.export.save(program, f)

    return write_atomically(path, write)


def _dynamic_shapes(example: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(example) != 1 or not isinstance(example[0], torch.Tensor) or example[0].dim() != 4:
        raise ExportError("only models with a single (N, C, H, W) input can have dynamic shapes; use --static")
    return (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)


def _trace(model: nn.Module, example: tuple[Any, ...], shapes: tuple[Any, ...] | None) -> Any:
    try:
        with torch.no_grad():
            # Paddings make tracing note which sizes they were seen with; as run-time checks these bind nobody else.
            return torch.export.export(
                model, example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as e:
        raise ExportError(_message(e, shapes)) from e


def _trace_onnx(model: nn.Module, example: tuple[Any, ...], shapes: tuple[Any, ...] | None) -> Any:
    # Before the slow part; torch itself says it afterwards, and in several lines.
    if importlib.util.find_spec("onnxscript") is None:
        raise ExportError("ONNX needs an extra: pip install 'ilmconvert[export]'")
    program = _trace(model, example, shapes)
    with warnings.catch_warnings():
        # The exporter warns of its own use of torch's deprecated interfaces.
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as e:
            raise ExportError(_message(e, shapes)) from e


def _message(error: Exception, shapes: tuple[Any, ...] | None) -> str:
    reason = " ".join(str(error).split())[:200]
    cure = "; if the model has a fixed input size, export it with --static" if shapes is not None else ""
    return f"the model can't be exported: {reason}{cure}"
