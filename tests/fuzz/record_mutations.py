"""Changes of the record, which says what the model is; in place."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.values import architecture, argument, value


def _anywhere(record: dict[str, Any], r: Random) -> None:
    """Replace, remove or repeat a value somewhere in the record."""
    parent: Any = record
    while parent:
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        key = r.choice(keys)
        if isinstance(parent[key], dict | list) and parent[key] and r.random() < 0.8:
            parent = parent[key]
            continue
        action = r.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = value(r)
        return


def _architecture(record: dict[str, Any], r: Random) -> None:
    spec = record.get("spec") if isinstance(record.get("spec"), dict) else {}
    library = r.choice(("timm", "torchvision", "os", value(r)))
    record["spec"] = {"library": library, "architecture": architecture(r), "model_args": (spec or {}).get("model_args")}


def _arguments(record: dict[str, Any], r: Random) -> None:
    if isinstance(record.get("spec"), dict):
        found = record["spec"].get("model_args")
        record["spec"]["model_args"] = {**(found if isinstance(found, dict) else {}), **dict([argument(r)])}


def _layer(record: dict[str, Any], r: Random) -> None:
    layers = [entry for entry in record.get("layers") or [] if isinstance(entry, dict)]
    if not layers:
        return
    entry, other = r.choice(layers), r.choice(layers)
    kind = r.randrange(5)
    if kind == 0:
        entry["name"] = r.choice(("", "conv1", "fc", "layer1", "layer1.0", other.get("name"), "a.b.c", value(r)))
    elif kind == 1:
        entry["aliases"] = [r.choice((other.get("name"), "fc", "", value(r)))]
    elif kind == 2 and isinstance(entry.get("config"), dict) and entry["config"]:
        entry["config"][r.choice(list(entry["config"]))] = value(r)
    elif kind == 3:
        entry["config"] = dict(other.get("config") or {}) | {"kind": "group_norm"}
    else:
        record["layers"] *= r.choice((0, 2, 50))


def _aliases(record: dict[str, Any], r: Random) -> None:
    names = [entry.get("name") for entry in record.get("layers") or [] if isinstance(entry, dict)] or ["x"]
    pair = [f"{r.choice(names)}.{r.choice(('weight', 'bias', 'ref_std', 'num_batches_tracked', ''))}" for _ in range(2)]
    record["aliases"] = {pair[0]: pair[1]} if r.random() < 0.8 else value(r)


def _version(record: dict[str, Any], r: Random) -> None:
    record["format_version"] = r.choice((0, 2, 3, 10**30, True, "1", 1.0, None, value(r)))


def _standardization(record: dict[str, Any], r: Random) -> None:
    record["standardized_input"] = value(r) if r.random() < 0.3 else {"layer": value(r), "std": value(r)}


RECORD: tuple[Callable[[dict[str, Any], Random], None], ...] = (
    _anywhere,
    _anywhere,
    _architecture,
    _arguments,
    _arguments,
    _layer,
    _layer,
    _aliases,
    _version,
    _standardization,
)
