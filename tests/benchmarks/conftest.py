"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import write_fashion_mnist


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    return write_fashion_mnist(tmp_path / "root")
