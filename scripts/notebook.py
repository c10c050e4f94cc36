"""The notebooks of ``examples/``, executed: ``python -m scripts.notebook`` writes their outputs anew.

Nothing else is kept of a run: neither times nor the version of Python.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = tuple(sorted((ROOT / "examples").glob("*.ipynb")))
LIMIT = 300  # seconds a cell, on a machine that has other things to do


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, run in the folder of the repository; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    kept = notebook.metadata.copy()
    NotebookClient(notebook, timeout=LIMIT, record_timing=False, resources={"metadata": {"path": str(ROOT)}}).execute()
    notebook.metadata = kept
    return notebook


def main() -> None:
    """Write all of them."""
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
