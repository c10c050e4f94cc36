"""The lines of a run, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.other_libraries.check import CHECKS

#: What docs/other-libraries.md quotes.
RESULTS = Path(__file__).parent / "results.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """All lines, in the order of their names, in one go: a reader never sees half of them."""
    text = "".join(f"{json.dumps(line)}\n" for line in sorted(lines, key=lambda line: str(line["network"]).lower()))
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """One row a network, and before them how many pass each check.

    >>> line = {"network": "a/B", "norms": 2, "converted": 2, "error": 1e-7, "dtype": "float32", "exact": True}
    >>> print(markdown([line | {"saved and loaded": True, "trained": False, "own save and load": None}]))
    1 networks; exact 1, saved and loaded 1, trained 0, own save and load 0
    <BLANKLINE>
    | network | converted | error | exact | saved and loaded | trained | own save and load |
    |---|---|---|---|---|---|---|
    | a/B | 2/2 | 1e-07 | yes | yes | no |  |
    """
    lines = list(lines)
    counts = ", ".join(f"{name} {sum(line.get(name) is True for line in lines)}" for name in CHECKS)
    header = ("network", "converted", "error", *CHECKS)
    rows = [header, ("---",) * len(header), *map(_row, lines)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("| --- ", "|---").replace("--- |", "---|")
    return f"{len(lines)} networks; {counts}\n\n{table}"


def _row(line: Mapping[str, Any]) -> tuple[str, ...]:
    error = line.get("error")
    taken = " in float64" if line.get("dtype") == "float64" else ""
    marks = {True: "yes", False: "no", None: ""}
    checks = (marks[line.get(name)] for name in CHECKS)
    shown = "" if error is None else f"{error:.0e}{taken}"
    return line["network"], f"{line['converted']}/{line['norms']}", shown, *checks
