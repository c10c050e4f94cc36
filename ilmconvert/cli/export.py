"""``ilmconvert export FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ilmconvert.cli._common import print_json, progress


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["onnx", "pt2"]), default="onnx", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="[default: FILE.onnx or FILE.pt2]")
@click.option("--static", is_flag=True, help="Fix batch, height and width to the example's (2 and --size).")
@click.option("--size", type=click.IntRange(min=1), help="Height and width of the example.  [default: the model's]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def export(
    file: Path, kind: str, output: Path | None, static: bool, size: int | None, force: bool, as_json: bool
) -> None:
    """Write the converted checkpoint FILE for inference elsewhere, constant parts folded.

    \b
    Examples:
      ilmconvert export resnet50-ilm_gn.safetensors --format onnx
      ilmconvert export resnet50-ilm_gn.safetensors --format pt2 --static --size 224
    """
    output = output or file.with_suffix(f".{kind}")
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists already; replace it with --force or name another file with -o")
    from ilmconvert.checkpoint import load
    from ilmconvert.export import export as write

    with progress() as say:
        say(f"loading {file}")
        model = load(file)
        say("tracing")
        write(model, output, format=kind, dynamic=not static, size=size)
        say("comparing with the model")
        error = _error_in_runtime(model, output, kind, size)
    summary: dict[str, Any] = {"output": str(output), "format": kind, "dynamic": not static, "relative_error": error}
    if as_json:
        print_json(summary)
        return
    click.echo(f"Wrote {output} ({'dynamic' if not static else 'fixed'} batch, height and width)")
    click.echo(
        "Not compared: onnxruntime isn't installed" if error is None else f"Error against the model: {error:.1e}"
    )


def _error_in_runtime(model: Any, output: Path, kind: str, size: int | None) -> float | None:
    """Largest difference over the largest output, run from the file; None without onnxruntime."""
    import torch

    from ilmconvert.probe import outputs, probe_batch

    inputs = probe_batch(model, batch_size=2, size=size, seed=1)
    with torch.no_grad():
        expected = outputs(model(*inputs))
    if kind == "pt2":
        with torch.no_grad():
            got = outputs(torch.export.load(output).module()(*inputs))
    else:
        try:
            import onnxruntime
        except ImportError:
            return None
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        results = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
        got = [torch.from_numpy(result) for result in results]
    scale = max(float(t.abs().max()) for t in expected) or 1.0
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / scale
