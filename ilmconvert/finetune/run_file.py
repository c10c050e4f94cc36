"""The file that repeats a run: options of ``ilmconvert finetune`` and fields of the recipe, as YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ilmconvert.data.open_data import Data
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.recipe import RECIPES, Recipe

_HEAD = "# ilmconvert finetune --config FILE reads this file; options on the command line count more."


def run_file(sections: Mapping[str, Mapping[str, Any]], recipe: Recipe, missing: tuple[str, ...] = ()) -> str:
    """The text of the file; options that are None, empty or false stay out, fields of the recipe are complete.

    Args:
        sections: options by heading; names as on the command line, without the dashes.
        recipe: of the run.
        missing: what has to be given on the command line, since no name of it is known.

    >>> print(run_file({"Run": {"data": "pets", "resume": False}}, RECIPES["norm"]).partition("  # Recipe")[0])
    # ilmconvert finetune --config FILE reads this file; options on the command line count more.
    # learning rate of the optimizer: 0.0125
    finetune:
    <BLANKLINE>
      # Run
      data: pets
      recipe: norm
    <BLANKLINE>
    <BLANKLINE>
    """
    own = {"recipe": recipe.name} if recipe.name in RECIPES else {"recipe-name": recipe.name}
    filled = {heading: dict(options) for heading, options in sections.items()}
    filled.setdefault("Run", {}).update(own)
    for name, (_, about, _) in settings_of(Recipe).items():
        filled.setdefault(f"Recipe: {about.section.lower()}", {})[kebab(name)] = recipe.to_dict()[name]
    fields = {kebab(name) for name in settings_of(Recipe)}
    lines = [_HEAD, *(f"# The {name} was given in Python: name it on the command line." for name in missing)]
    lines += [f"# learning rate of the optimizer: {recipe.learning_rate:g}", "finetune:"]
    for heading, options in filled.items():
        shown = [f"  {_line(key, value)}" for key, value in options.items() if key in fields or _says(value)]
        lines += ["", f"  # {heading}", *shown] if shown else []
    return "\n".join(lines) + "\n"


def run_file_of(recipe: Recipe, *, model: object, data: object, teacher: object, **options: Any) -> str:
    """The file of a run that was started in Python; modules and data that were opened before have no name."""
    given = {"model": model, "data": data, "teacher": teacher}
    missing = tuple(name for name, value in given.items() if isinstance(value, nn.Module | Data))
    named = {name: value for name, value in given.items() if name not in missing}
    run = {key: named.get(key) for key in ("model", "data")} | {"output": options.pop("output")}
    model_options = {"teacher": named.get("teacher"), **{kebab(key): value for key, value in options.items()}}
    return run_file({"Run": run, "Model": model_options}, recipe, missing)


def kebab(name: str) -> str:
    """A name as options have it."""
    return name.replace("_", "-")


def _says(value: Any) -> bool:
    return value is not None and value is not False and value != () and value != {}


def _line(key: str, value: Any) -> str:
    """One option; a mapping is a list of KEY=VALUE, as it is on the command line."""
    import yaml

    if isinstance(value, Mapping):
        value = [f"{name}={json.dumps(each)}" for name, each in value.items()]
    elif isinstance(value, tuple):
        value = list(value)
    elif isinstance(value, Path):
        value = str(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"{key}: {text.strip().removesuffix('...').strip()}"  # the end of a document, behind a bare value
