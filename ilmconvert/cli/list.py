"""``ilmconvert list [PATTERN]``."""

from __future__ import annotations

import click

from ilmconvert.cli._common import print_json, progress
from ilmconvert.errors import ModelError


@click.command("list")
@click.argument("pattern", required=False)
@click.option("--all", "show_all", is_flag=True, help="List models without convertible layers, too.")
@click.option("--check", is_flag=True, help="Build every model and count its layers again (0.1 s a model).")
@click.option("--json", "as_json", is_flag=True, help="Print the list as one JSON object.")
def list_(pattern: str | None, show_all: bool, check: bool, as_json: bool) -> None:
    """List the models that can be converted, each with its number of convertible norm layers.

    PATTERN holds wildcards (resnet*, torchvision/*), or is a part of a name. The numbers come with the package; models
    that it doesn't know, of other versions of timm or torchvision, are built and counted now.

    \b
    Examples:
      ilmconvert list 'efficientnet*'
      ilmconvert list torchvision/ --all --json
    """
    from ilmconvert.models.create import list_models

    if pattern and not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    names = list_models(pattern)
    if not names:
        raise ModelError(f"no model of timm or torchvision matches {pattern!r}")
    counts = _counts(names, check)
    shown = {name: count for name, count in counts.items() if count or show_all}
    if as_json:
        models = [{"name": name, "norm_layers": count} for name, count in shown.items()]
        print_json({"models": models, "matching": len(names)})
        return
    for name, count in shown.items():
        click.echo(f"{count:5d}  {name}")
    convertible = sum(count > 0 for count in counts.values())
    click.echo(f"{convertible} of {len(names)} models can be converted", err=True)


def _counts(names: list[str], check: bool) -> dict[str, int]:
    from ilmconvert.models.norm_counts import count_norms, stored_counts

    stored = {} if check else stored_counts()
    counts = {}
    with progress() as say:
        for index, name in enumerate(names):
            if name not in stored:
                say(f"{index} of {len(names)}: building {name}")
            counts[name] = stored[name] if name in stored else count_norms(name)
    return counts
