"""What a run's ``config.yaml`` says, held against what a resumed run is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilmconvert.data.folders import some
from ilmconvert.data.trained_images import REMEMBERED
from ilmconvert.errors import FineTuneError

# What may differ when a run goes on: it changes no number, or only when something is written; the place of the data.
MAY_DIFFER = {"recipe": ("workers", "save_every"), "data": ("source",)}


def read_config(path: Path) -> dict[str, Any]:
    """The content of a run's ``config.yaml``.

    Raises:
        FineTuneError: it can't be read, or is something else.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FineTuneError(f"can't read {path}; name another folder for the run") from error
    if not isinstance(content, dict):
        raise FineTuneError(f"{path} isn't the configuration of a run; name another folder")
    return content


def check_same_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on in ``folder`` with another run, or with one of which too little was written down.

    Args:
        folder: of the run.
        old: what its ``config.yaml`` says.
        new: what is asked for, see :func:`ilmconvert.finetune.runs.describe`.

    Raises:
        FineTuneError: says what differs.
    """
    changed, missing = [], []
    for part, key, before, after, known in _pairs(old, new):
        if before == after or key in MAY_DIFFER.get(part, ()):
            continue
        # of the data, other keys are there in some runs and not in others
        if not known and (part != "data" or key in REMEMBERED):
            missing.append(f"{part} {key}".strip())
        else:
            changed.append(f"{part} {key}".strip() + f" is {_short(before)}, not {_short(after)}")
    if changed:
        raise FineTuneError(
            f"{folder} holds another run ({'; '.join(changed[:3])}); resume it with the same settings, or name another "
            "folder"
        )
    if missing:
        raise FineTuneError(
            f"{folder} holds the run of an earlier ilmconvert, which didn't write down {some(missing)}, so that it "
            "can't be resumed exactly; start a new run in another folder"
        )


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, Any, Any, bool]]:
    """Part, key, the old value, the new one, and whether there is an old one; parts that are no mappings whole."""
    found = []
    for part in new:
        before, after = (json.loads(json.dumps(content.get(part))) for content in (old, new))
        if not isinstance(after, dict) or not isinstance(before, dict | None):
            before, after = {"": before}, {"": after}
        before = before or {}
        keys = [*before, *(key for key in after if key not in before)]
        found += [(part, key, before.get(key), after.get(key), key in before) for key in keys]
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
