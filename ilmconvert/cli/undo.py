"""``ilmconvert undo CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import check_output, output_options, print_json, progress

if TYPE_CHECKING:
    from torch import nn


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--partial", is_flag=True, help="Keep layers that equal no plain norm any more, instead of refusing.")
@output_options("CHECKPOINT-source")
def undo(checkpoint: Path, partial: bool, output: Path | None, force: bool, as_json: bool) -> None:
    """Give CHECKPOINT its BatchNorm, GroupNorm and InstanceNorm layers back, where they still compute the same.

    The result holds the weights under the names of the source's architecture, and is read without ilmconvert. With
    --partial, where layers stay, it is a checkpoint of ilmconvert.

    \b
    Examples:
      ilmconvert undo resnet50-ilm_gn.safetensors
      ilmconvert undo run/best.safetensors --partial -o mixed.safetensors
    """
    output = output or checkpoint.with_name(f"{checkpoint.stem}-source.safetensors")
    check_output(output, force)
    from ilmconvert.checkpoint.safetensors_io import write
    from ilmconvert.checkpoint.save_load import load, save
    from ilmconvert.data.example_inputs import example_inputs
    from ilmconvert.evaluation.outputs import output_error
    from ilmconvert.models.undo import undo as undone
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery.module_state import state_of

    with progress() as say:
        say(f"loading {checkpoint}")
        model = load(checkpoint)
        say("giving the norms back")
        result = undone(model, partial=partial)
        say("comparing on random inputs")
        error = output_error(model, result, example_inputs(result, batch_size=2)).relative_error
        kept = [name for name, m in result.named_modules() if isinstance(m, ILMNorm)]
        if kept:
            save(result, output)
        else:
            write(output, {name: t.clone() for name, t in state_of(result).items()}, {"format": "pt"})
    summary = _summary(model, result, kept) | {"checkpoint": str(checkpoint), "output": str(output), "error": error}
    if as_json:
        print_json(summary)
        return
    stay = f", {len(kept)} layers stay converted" if kept else ""
    click.echo(f"{summary['undone']} layers are plain norms again{stay}; error against {checkpoint.name}: {error:.1e}")
    click.echo(f"Wrote {output}" + ("" if kept or not summary["source"] else f"; weights of {summary['source']}"))


def _summary(model: nn.Module, result: nn.Module, kept: list[str]) -> dict[str, Any]:
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery import info

    spec = info(result).spec
    return {
        "undone": sum(isinstance(m, ILMNorm) for m in model.modules()) - len(kept),
        "kept": kept,
        "source": None if spec is None else f"{spec.library}/{spec.architecture}",
    }
