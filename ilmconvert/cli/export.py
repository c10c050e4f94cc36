"""``ilmconvert export FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress
from ilmconvert.cli._formats import check_place, check_push, default_place, push_options, write, written
from ilmconvert.cli._outputs import beside

if TYPE_CHECKING:
    from torch import nn

    from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint


#: Formats of files for inference, and their endings.
RUNTIMES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice([*RUNTIMES, "hub", "delta"]),
    default="onnx",
    show_default=True,
    help="onnx, pt2 (torch.export) and aoti (AOTInductor, compiled for this kind of machine): for inference; hub: a "
    "folder that timm and the Hugging Face hub read; delta: only the tensors that differ from the source's.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Output to write.  [default: FILE with the ending of the format]",
)
@click.option("--static", is_flag=True, help="Fix the batch size to 2.")
@click.option(
    "--dynamic-size",
    is_flag=True,
    help="Leave height and width open, too; tracing can take minutes.  [default: --size]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Height and width of the example input.  [default: the model's]",
)
@click.option(
    "--source", metavar="MODEL|CHECKPOINT", help="Source model, for hub and delta.  [default: the one that FILE names]"
)
@click.option(
    "--weights", metavar="default|FILE", help="Weights of the source model.  [default: those that FILE names]"
)
@model_arg_option("the source model")
@push_options
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def export(file: Path, kind: str, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Export the converted checkpoint FILE for inference (onnx, pt2, aoti), for timm and the hub, or as a delta.

    \b
    Examples:
      ilmconvert export resnet50-ilm_gn.safetensors --format onnx
      ilmconvert export resnet50-ilm_gn.safetensors --format pt2 --dynamic-size
      ilmconvert export resnet50-ilm_gn.safetensors --format hub -o resnet50-ilm_gn
    """
    check_push(kind, options["push"], options["private"])
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    given, file = file, checkpoint_file(file)
    ending = RUNTIMES[kind] if kind in RUNTIMES else default_place("x", kind).name.removeprefix("x")
    output = output or beside(file, ending, given=given)
    write_it = _for_runtime if kind in RUNTIMES else _for_people
    summary, text = write_it(file, kind, output, force, **options)
    if as_json:
        print_json(summary)
    else:
        click.echo(text)


def _for_people(
    file: Path,
    kind: str,
    output: Path,
    force: bool,
    *,
    source: str | None,
    weights: str | None,
    model_args: dict[str, Any],
    push: str | None,
    private: bool,
    static: bool,
    dynamic_size: bool,
    size: int | None,
) -> tuple[dict[str, Any], str]:
    """A hub folder or a delta: the summary, also as text."""
    if static or dynamic_size or size is not None:
        raise click.UsageError("--static, --dynamic-size and --size are for onnx, pt2 and aoti; leave them out")
    check_place(output, kind, force)
    with progress() as say:
        say(f"loading {file}")
        from ilmconvert.evaluation.verify.opened_checkpoint import open_checkpoint

        opened = open_checkpoint(file)
        say("looking for the source")
        base = _base(opened, kind, source, weights, model_args)
        summary = write(opened.model, output, kind, base, say, push=push, private=private)
    return {**summary, "measured": kind == "hub" and base is not None}, written(summary)


def _base(
    opened: OpenedCheckpoint, kind: str, source: str | None, weights: str | None, model_args: dict[str, Any]
) -> nn.Module | None:
    """The source: for a delta there must be one; a card does without, and of a trained network compares nothing."""
    from ilmconvert.errors import ILMConvertError
    from ilmconvert.evaluation.verify.source_model import find_base, find_source_model

    if kind == "delta":
        return find_base(opened, source=source, weights=weights, model_args=model_args).model
    given = source is not None or weights is not None or bool(model_args)
    if opened.fine_tuned and not given:
        return None
    try:
        found = find_source_model(opened, source=source, weights=weights, model_args=model_args)
    except ILMConvertError:
        if given:
            raise
        return None
    return None if found.kind == "reconstructed" else found.model


def _for_runtime(
    file: Path,
    kind: str,
    output: Path,
    force: bool,
    *,
    static: bool,
    dynamic_size: bool,
    size: int | None,
    **others: Any,
) -> tuple[dict[str, Any], str]:
    """A file for inference: the summary, also as text."""
    if others["source"] is not None or others["weights"] is not None or others["model_args"]:
        raise click.UsageError("--source, --weights and --model-arg are for hub and delta; leave them out")
    if static and dynamic_size:
        raise click.UsageError("--static fixes what --dynamic-size leaves open; leave one of them out")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent} to write {output.name} into; make it first")
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists already; replace it with --force or name another file with -o")
    from ilmconvert.checkpoint.save_load import load
    from ilmconvert.export.formats import export as write_program

    with progress() as say:
        say(f"loading {file}")
        model = load(file)
        tracing = "tracing and compiling" if kind == "aoti" else "tracing"
        say(f"{tracing}, which can take minutes with --dynamic-size" if dynamic_size else tracing)
        write_program(model, output, format=kind, dynamic=not static, dynamic_size=dynamic_size, size=size)
        say("comparing with the model")
        error = _error_in_runtime(model, output, kind, size)
    traced = _traced_shape(model, size)
    shape = "fixed shape" if static else f"dynamic batch{', height and width' if dynamic_size else ''}"
    text = f"Wrote {output} ({shape}; traced with {traced})\n"
    text += (
        "Not compared with the model, since onnxruntime isn't installed"
        if error is None
        else f"Error against the model: {error:.1e}"
    )
    summary = {"output": str(output), "format": kind, "dynamic": not static, "dynamic_size": dynamic_size}
    return {**summary, "traced_with": traced, "relative_error": error}, text


def _traced_shape(model: Any, size: int | None) -> str:
    from ilmconvert.data.example_inputs import example_inputs

    return " x ".join(map(str, example_inputs(model, batch_size=2, size=size)[0].shape))


def _error_in_runtime(model: Any, output: Path, kind: str, size: int | None) -> float | None:
    """Largest difference over the largest output, run from the file; None without onnxruntime."""
    import torch

    from ilmconvert.data.example_inputs import example_inputs
    from ilmconvert.surgery.difference import relative_difference
    from ilmconvert.surgery.outputs import outputs

    inputs = example_inputs(model, batch_size=2, size=size, seed=1)
    with torch.no_grad():
        expected = outputs(model(*inputs))
    if kind in ("pt2", "aoti"):
        with torch.no_grad():
            got = outputs(_loaded(output, kind)(*inputs))
    else:
        try:
            import onnxruntime
        except ImportError:
            return None
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        results = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
        got = [torch.from_numpy(result) for result in results]
    return relative_difference(expected, got)


def _loaded(file: Path, kind: str) -> Any:
    import torch

    if kind == "pt2":
        return torch.export.load(file).module()
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(file))
