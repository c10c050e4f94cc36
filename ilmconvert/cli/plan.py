"""``ilmconvert plan MODEL``."""

from __future__ import annotations

from typing import Any

import click

from ilmconvert.cli._common import conversion_options, given, in_options, model_argument, print_json, progress, warn
from ilmconvert.cli._convert_view import count_layers
from ilmconvert.errors import ConversionError


@click.command()
@model_argument
@conversion_options
@click.option(
    "--weights",
    default="none",
    show_default=True,
    metavar="none|default|FILE",
    help="Weights whose running statistics are checked, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
def plan(model: str, weights: str, as_json: bool, model_args: dict[str, Any], **settings: Any) -> None:
    """Show what each norm layer of MODEL would be converted to. The exit code is 2 if MODEL can't be converted.

    \b
    Examples:
      ilmconvert plan efficientnet_b0
      ilmconvert plan resnet50 --exclude '*.downsample.*' --json
    """
    from ilmconvert import surgery
    from ilmconvert.models.create import ModelSpec, create_model, parse_name
    from ilmconvert.models.norm_counts import skeleton

    with progress() as say:
        say(f"building {model}")
        if weights == "none":
            spec = parse_name(model)
            source = skeleton(ModelSpec(spec.library, spec.architecture, {**spec.model_args, **model_args}))
        else:
            source = create_model(model, weights=weights, **model_args)
    try:
        found = surgery.plan(source, **given(**settings))
    except ValueError as error:
        raise click.UsageError(in_options(error)) from error
    if as_json:
        print_json({"model": model, **found.to_dict(), "layers": count_layers(found)})
    else:
        click.echo(str(found))
    for pattern in found.unmatched:
        warn(f"pattern {pattern!r} matches no norm layer")
    if found.errors:
        raise ConversionError(f"{len(found.errors)} layers of {model} can't be converted as asked")
    if not found.converted:
        raise ConversionError(f"nothing to convert in {model}")
