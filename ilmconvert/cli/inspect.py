"""``ilmconvert inspect FILE``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from ilmconvert.cli._common import print_json
from ilmconvert.cli._table import print_facts

_FINETUNED = "finetuned"
_CUSTOM = "a custom model (not from timm or torchvision), for load(path, into=model)"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--layers", "with_layers", is_flag=True, help="List every converted layer.")
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as one JSON object.")
def inspect(file: Path, with_layers: bool, as_json: bool) -> None:
    """Show the metadata of the converted checkpoint FILE, without loading its tensors.

    \b
    Examples:
      ilmconvert inspect resnet50-ilm_gn.safetensors
      ilmconvert inspect resnet50-ilm_gn.safetensors --layers
    """
    from ilmconvert.checkpoint.save_load import read_header

    header = read_header(file)
    if as_json:
        print_json(header)
        return
    print_facts(str(file), _rows(header))
    if with_layers:
        for layer in header["layers"]:
            names = ", ".join(name or "(root)" for name in (layer["name"], *layer["aliases"]))
            click.echo(f"{names}: {_settings(layer['config'])}")


def _rows(header: dict[str, Any]) -> list[tuple[str, str]]:
    spec = header["spec"]
    name = f"{spec['library']} {spec['architecture']}" if spec else _CUSTOM
    args = {key: value for key, value in (spec or {}).get("model_args", {}).items() if key != "pretrained_cfg"}
    kinds = Counter(layer["config"]["num_groups"] for layer in header["layers"])
    groups = ", ".join(f"{count} x {groups}" for groups, count in kinds.most_common())
    tensors = header["tensors"]
    return [
        ("model", name),
        *([("arguments", ", ".join(f"{key}={value!r}" for key, value in args.items()))] if args else []),
        *((key, _text(value)) for key, value in header["settings"].items()),
        *_layer_rows(header["layers"]),
        *([("groups", groups)] if groups else []),
        *_input_rows(header),
        *_provenance_rows(header["provenance"]),
        ("tensors", f"{tensors['count']}, {tensors['bytes'] / 2**20:.1f} MiB"),
        ("written by", f"ilmconvert {header['ilmconvert']}, format {header['format_version']}"),
    ]


def _layer_rows(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How many layers of which kind."""
    from ilmconvert.surgery.targets import read_config

    titles = Counter(read_config(layer["config"]).title for layer in layers)
    restoring = sum(bool(layer["config"].get("restore")) for layer in layers)
    texts = {"ILM Norm": f", {restoring} of them with a restoring path (exact initial values)"}
    return [(f"{title} layers", f"{count}{texts.get(title, '')}") for title, count in titles.items()]


def _input_rows(header: dict[str, Any]) -> list[tuple[str, str]]:
    """What the network does with each image first."""
    from ilmconvert.surgery.input_standardization import InputStandardization

    found = header.get("standardized_input")
    return [] if found is None else [("input", str(InputStandardization.from_dict(found)))]


def _provenance_rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the weights come from, and how they were fine-tuned; whatever else is known one by one."""
    rows = [(key, _text(value)) for key, value in provenance.items() if key != _FINETUNED]
    run = provenance.get(_FINETUNED)
    if not isinstance(run, dict):
        return rows if run is None else [*rows, (_FINETUNED, _text(run))]
    run = dict(run)
    if isinstance(baseline := run.pop("baseline", None), str):
        rows.append(("fine-tuned as", f"the baseline {baseline} of a run"))
    if isinstance(run.get("recipe"), dict):
        rows.append(("fine-tuned with", _recipe_text(run["recipe"])))
    if isinstance(run.get("data"), dict):
        rows += [(f"trained on: {key}", _text(value)) for key, value in run["data"].items() if value is not None]
    others = {key: value for key, value in run.items() if not isinstance(value, dict)}
    return rows + [(f"trained to: {key}", _text(value)) for key, value in others.items()]


def _recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe's name, and the fields in which it isn't the one of that name."""
    from ilmconvert.finetune.recipe import RECIPES, Recipe

    name = str(recipe.get("name", "custom"))
    usual = RECIPES.get(name, Recipe()).to_dict()
    changed = {key: value for key, value in recipe.items() if key != "name" and usual.get(key, ...) != value}
    return f"recipe {name}{': ' + _text(changed) if changed else ''}"


def _text(value: Any) -> str:
    """A JSON value as people write it: lists by commas, mappings as "key value"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return (
            " ".join(map(_text, value)) if all(type(v) in (int, float) for v in value) else ", ".join(map(_text, value))
        )
    if isinstance(value, float):
        return f"{value:g}"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def _settings(config: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items())
