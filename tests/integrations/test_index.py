"""The table of integrations: every page is in it, and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integrations.pages import PAGES

ROWS = re.findall(r"^\|.*?\[(\w+)\]\((\w+\.md)\) \| `(\w+\.py)::(\w+)`", (PAGES / "index.md").read_text(), re.MULTILINE)


def test_every_page_is_in_the_table() -> None:
    assert {page for _, page, _, _ in ROWS} == {path.name for path in PAGES.glob("*.md")} - {"index.md"}
    assert all(f"{name}.md" == page for name, page, _, _ in ROWS)


@pytest.mark.parametrize(("file", "name"), [row[2:] for row in ROWS])
def test_named_test_exists(file: str, name: str) -> None:
    source = (Path(__file__).parent / file).read_text()
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)
