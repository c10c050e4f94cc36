"""The notebook runs from its first cell to its last without a network, and shows what is in the repository."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from scripts.notebook import NOTEBOOKS, executed
from tests.helpers import ROOT

# every address outside of this machine fails at once
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    return [
        o.text for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs if o.output_type == "stream"
    ]


def plots(notebook: nbformat.NotebookNode) -> int:
    return sum(
        "image/jpeg" in output.get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs_and_prints_what_it_shows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    kept = nbformat.read(path, as_version=4)
    found = executed(path)
    assert printed(found) == printed(kept), "python -m scripts.notebook"
    assert plots(found) == plots(kept) == 3


def test_notebooks_are_committed_with_their_outputs_and_nothing_of_the_machine() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert len(text) < 300_000
        assert not any(
            word in text for word in ("iopub", '"stderr"', str(ROOT), str(Path.home()) + "/", "site-packages")
        )
        notebook = nbformat.read(path, as_version=4)
        assert [c.execution_count for c in notebook.cells if c.cell_type == "code"] == list(
            range(1, 1 + sum(c.cell_type == "code" for c in notebook.cells))
        )
