"""Export converted models for inference: ONNX, torch.export and AOTInductor files with an open batch size."""

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
from ilmconvert.errors import ExportError, one_line
from ilmconvert.export.inference_form import InferenceNorm, inference_form
from ilmconvert.export.onnx_norm import translations

FORMATS = ("onnx", "pt2", "aoti")
_AXES = {0: "batch", 2: "height", 3: "width"}


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    dynamic: bool = True,
    dynamic_size: bool = False,
    size: int | Sequence[int] | None = None,
) -> Path:
    """Write ``model`` in evaluation mode as an ONNX file, a ``torch.export`` archive or an AOTInductor package.

    The layers are brought into their inference form first (:func:`ilmconvert.export.inference_form.inference_form`).
    An ONNX file's input is called ``input``, its output ``output`` (``output_0``, ... of several), its open axes
    ``batch``, ``height`` and ``width``.

    Args:
        model: takes one (N, C, H, W) tensor. It isn't changed.
        path: the file; it appears under this name when it is complete.
        format: "onnx" (needs ``pip install 'ilmconvert[export]'``), "pt2" (``torch.export.load`` reads it), or "aoti",
            which is compiled for this kind of machine (needs a C++ compiler; ``torch._inductor.aoti_load_package``
            reads it, and so does C++ without Python; has one size).
        dynamic: leave the batch size open; otherwise it is 2.
        dynamic_size: leave height and width open, too; otherwise they are those of the example input. Tracing can take
            minutes: paddings that depend on the size make torch solve for it.
        size: of the example input, see :func:`ilmconvert.data.example_inputs.example_inputs`.

    Raises:
        ExportError: a missing extra or compiler, or a model that can't be traced or has a fixed input size.
        CheckpointError: the file can't be written.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; use one of {', '.join(FORMATS)}")
    if format == "aoti":
        _check_compilation(Path(path), dynamic_size)
    form = inference_form(model)
    example = example_inputs(form, batch_size=2, size=size)
    shapes = _dynamic_shapes(example, dynamic_size) if dynamic or dynamic_size else None
    program = _trace_onnx(form, example, shapes) if format == "onnx" else _trace(form, example, shapes)

    def write(temporary: Path) -> None:
        if format == "onnx":
            program.save(str(temporary))
        elif format == "aoti":
            _compile(program, temporary)
        else:
            with open(temporary, "wb") as f:
                torch.export.save(program, f)

    return write_atomically(path, write)


def _check_compilation(path: Path, dynamic_size: bool) -> None:
    """Refuse what AOTInductor can't do, before the slow part."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if dynamic_size:
        # torch 2.14: garbage at other sizes than the traced one, of networks with BatchNorm, too.
        raise ExportError("AOTInductor miscompiles networks of open height and width; leave out --dynamic-size")
    if path.suffix != ".pt2":
        raise ExportError(f"AOTInductor's packages are called *.pt2; write {path.with_suffix('.pt2')}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise ExportError("AOTInductor needs a C++ compiler; install g++ or clang, or use the format onnx") from e


def _compile(program: torch.export.ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    try:
        aoti_compile_and_package(program, package_path=str(path))
    except Exception as e:
        raise ExportError(
            f"AOTInductor can't compile the model: {one_line(e)[:200]}; use the format onnx or pt2"
        ) from e


def _dynamic_shapes(example: tuple[Any, ...], dynamic_size: bool) -> tuple[Any, ...]:
    if len(example) != 1 or not isinstance(example[0], torch.Tensor) or example[0].dim() != 4:
        raise ExportError("only models with a single (N, C, H, W) input can have dynamic shapes; use --static")
    return (dict.fromkeys(_AXES if dynamic_size else (0,), torch.export.Dim.DYNAMIC),)


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
    for module in model.modules():
        if isinstance(module, InferenceNorm):
            module.as_one = True
    program = _trace(model, example, shapes)
    with warnings.catch_warnings():
        # The exporter warns of its own use of torch's deprecated interfaces.
        warnings.simplefilter("ignore")
        try:
            found: Any = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=translations())
        except Exception as e:
            raise ExportError(_message(e, shapes)) from e
    _name(found.model.graph, shapes)
    return found


def _name(graph: Any, shapes: tuple[Any, ...] | None) -> None:
    """Call the input, the outputs and the open axes what they are."""
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for i, value in enumerate(values):
            value.name = kind if len(values) == 1 else f"{kind}_{i}"
    if shapes is None:
        return
    traced = {str(graph.inputs[0].shape[axis]): _AXES[axis] for axis in shapes[0]}
    for value in (*graph.inputs, *graph.outputs):
        for axis, n in enumerate(value.shape or ()):
            if str(n) in traced:
                value.shape[axis] = traced[str(n)]


def _message(error: Exception, shapes: tuple[Any, ...] | None) -> str:
    cure = ""
    if shapes is not None:
        cure = "; leave out --dynamic-size" if len(shapes[0]) > 1 else "; fix its batch size, too, with --static"
    return f"the model can't be exported: {one_line(error)[:200]}{cure}"
