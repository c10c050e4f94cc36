"""``ilmconvert undo CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import print_json, progress, warn
from ilmconvert.cli._outputs import beside, check_output, output_options

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
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    given, checkpoint = checkpoint, checkpoint_file(checkpoint)
    output = output or beside(checkpoint, "-source.safetensors", given=given)
    check_output(output, force)
    from ilmconvert.checkpoint.safetensors_io import write
    from ilmconvert.checkpoint.save_load import load, save
    from ilmconvert.cli._compare import error_on_random_inputs
    from ilmconvert.models.undo import undo as undone
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery.input_standardization import input_standardization
    from ilmconvert.surgery.module_state import state_of
    from ilmconvert.surgery.undo import why_not_plain

    with progress() as say:
        say(f"loading {checkpoint}")
        model = load(checkpoint)
        say("giving the norms back")
        result = undone(model, partial=partial)
        say("comparing on random inputs")
        compared = error_on_random_inputs(model, result)
        standardized = input_standardization(result)
        kept = {name: why_not_plain(m) for name, m in result.named_modules() if isinstance(m, ILMNorm)}
        if kept:
            save(result, output)
        else:
            if standardized is not None:
                warn(
                    f"the network had {standardized}, which a file of weights doesn't hold: standardise the images "
                    "before you give them",
                    loud=True,
                )
            write(output, {name: t.clone() for name, t in state_of(result).items()}, {"format": "pt"})
    summary = _summary(model, result, kept)
    error = None if compared is None else compared["relative_error"]
    summary |= {"checkpoint": str(checkpoint), "output": str(output), "error": error}
    if as_json:
        print_json(summary)
        return
    stay = f", {len(kept)} layers stay converted" if kept else ""
    against = "not compared" if error is None else f"error against {checkpoint.name}: {error:.1e}"
    click.echo(f"{summary['undone']} layers are plain norms again{stay}; {against}")
    for name, why in kept.items():
        click.echo(f"  {name or 'the root'} stays: {why}")
    click.echo(f"Wrote {output}" + ("" if kept or not summary["source"] else f"; weights of {summary['source']}"))


def _summary(model: nn.Module, result: nn.Module, kept: dict[str, str | None]) -> dict[str, Any]:
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery import info

    spec = info(result).spec
    return {
        "undone": sum(isinstance(m, ILMNorm) for m in model.modules()) - len(kept),
        "kept": kept,
        "source": None if spec is None else f"{spec.library}/{spec.architecture}",
    }
