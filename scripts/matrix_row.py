"""One row of the table of combinations that the tests ran with; called by ``nox -s matrix``."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("torch", "torchvision", "timm", "safetensors", "click", "rich", "numpy")
HEAD = ("combination", "Python", *PACKAGES, "passed", "skipped", "failed", "seconds")


def row(combination: str, results: Path) -> tuple[list[str], bool]:
    """The cells, and whether every test passed, from a JUnit file of pytest."""
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    count = {key: int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - count["skipped"] - failed
    cells = [combination, platform.python_version(), *map(version, PACKAGES)]
    numbers = [passed, count["skipped"], failed, round(float(suite.get("time", 0)))]
    return [*cells, *map(str, numbers)], failed == 0 and passed > 0


def main() -> int:
    combination, results, table = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    cells, good = row(combination, results)
    lines = table.read_text().splitlines() if table.exists() else [_line(HEAD), _line(["---"] * len(HEAD))]
    kept = [line for line in lines if not line.startswith(f"| {combination} |")]
    table.write_text("\n".join([*kept, _line(cells)]) + "\n")
    print(table.read_text())
    return 0 if good else 1


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
