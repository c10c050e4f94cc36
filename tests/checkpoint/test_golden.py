"""Checkpoints of every released format version load, and give what they gave when they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ilmconvert import ILMNorm, load
from ilmconvert.checkpoint.metadata import FORMAT_VERSION
from ilmconvert.checkpoint.save_load import read_header
from tests.golden.make import HERE, KINDS, OUTPUTS, Custom
from tests.helpers import TOLERANCE, relative_error

FILES = sorted(path for path in HERE.glob("v*/*.safetensors") if path.name != OUTPUTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_checkpoint(path: Path) -> None:
    assert read_header(path)["format_version"] == int(path.parent.name[1:])
    model = load(path, into=Custom() if path.stem == "custom" else None)
    recorded = load_file(path.parent / OUTPUTS)
    wanted = recorded[path.stem]
    with torch.no_grad():
        found = model(recorded["input"].to(wanted.dtype))
    assert found.dtype == wanted.dtype
    assert relative_error(found, wanted) <= TOLERANCE[wanted.dtype]


def test_every_format_has_its_golden_files() -> None:
    """When the version changes: ``python -m tests.golden.make``."""
    assert max(KINDS) == FORMAT_VERSION
    wanted = {f"v{version}/{kind}" for version, kinds in KINDS.items() for kind in kinds}
    assert {f"{path.parent.name}/{path.stem}" for path in FILES} == wanted


def test_the_kinds_are_different() -> None:
    recorded = load_file(HERE / "v1" / OUTPUTS)
    outputs = [recorded[name] for name in KINDS[1] if name not in ("custom", "half", "annealed")]
    assert all(relative_error(a, b) > 1e-4 for i, a in enumerate(outputs) for b in outputs[:i])
    layers = [m for m in load(HERE / "v1" / "annealed.safetensors").modules() if isinstance(m, ILMNorm)]
    assert layers
    assert not any(layer.restore for layer in layers)
