"""Commands run in a folder of their own, on weights that tell a right conversion from a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilmconvert.cli import _progress
from tests.helpers import save_trained


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a command says its steps, where tests count lines."""
    monkeypatch.setattr(_progress, "PATIENCE", 1e6)


@pytest.fixture
def trained(folder: Path) -> Path:
    """Weights of a small network whose norms differ from their initial values."""
    return save_trained(folder).relative_to(folder)
