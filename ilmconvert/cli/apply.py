"""``ilmconvert apply DELTA``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress
from ilmconvert.cli._outputs import beside, check_output, output_options


@click.command()
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("--source", metavar="MODEL|CHECKPOINT", help="Source model.  [default: the one that the delta names]")
@click.option(
    "--weights", metavar="default|FILE", help="Weights of the source model.  [default: those that the delta names]"
)
@model_arg_option("the source")
@output_options("DELTA without .delta")
def apply(
    delta: Path,
    source: str | None,
    weights: str | None,
    model_args: dict[str, Any],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a checkpoint from DELTA and your own copy of its source model; any other model is refused.

    \b
    Examples:
      ilmconvert apply resnet50-ilm_gn.delta.safetensors
      ilmconvert apply resnet50-ilm_gn.delta.safetensors --weights resnet50.safetensors -o mine.safetensors
    """
    whole = delta.with_suffix("") if delta.stem.endswith(".delta") else delta  # the name without .delta.safetensors
    output = output or beside(whole, ".safetensors")
    if output.absolute() == delta.absolute():
        raise click.UsageError(f"{delta} can't be its own output; name another file with -o")
    check_output(output, force)
    with progress() as say:
        say(f"reading {delta}")
        from torch import nn

        from ilmconvert.checkpoint.delta import apply_delta, read_delta
        from ilmconvert.checkpoint.save_load import save
        from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint
        from ilmconvert.evaluation.verify.source_model import find_base

        found, _ = read_delta(delta)
        header = {**found.metadata.to_dict(), "spec": found.base.to_dict() if found.base else None}
        say("looking for the source model")
        opened = OpenedCheckpoint(delta, nn.Identity(), header, "")
        base = find_base(opened, source=source, weights=weights, model_args=model_args)
        model = apply_delta(base.model, delta)
        say(f"writing {output}")
        save(model, output)
    summary: dict[str, Any] = {"delta": str(delta), "base": base.description, "output": str(output)}
    if as_json:
        print_json(summary)
    else:
        click.echo(f"Wrote {output} (source: {base.description})")
