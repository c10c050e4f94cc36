"""Imports run one way: every file imports from its own room or from rooms below, and no two files import each other."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

#: The rooms from the ground up. Whoever adds one says here where it stands.
ROOMS = (
    "_constants",
    "errors",
    "nn",
    "surgery",
    "models",
    "checkpoint",
    "data",
    "evaluation",
    "calibration",
    "export",
    "finetune",
    "report",
    "testing",
    "cli",
)
PACKAGE = ROOT / "ilmconvert"
# The root hands out names of every room, and each room is free to be run as a program.
ABOVE_ALL = {"__init__", "__main__"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(source: str) -> set[str]:
    """The modules of the package that a file imports, in functions and for types, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == PACKAGE.name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found


def upward(room: str, source: str) -> list[str]:
    """What a file of a room imports from the root or from a room above."""
    rooms = {name: name.split(".")[1] if "." in name else "" for name in imported(source)}
    return sorted(name for name, other in rooms.items() if not other or ROOMS.index(other) > ROOMS.index(room))


def test_every_room_has_its_place() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - ABOVE_ALL == set(ROOMS)
    assert len(ROOMS) <= 14


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards(room: str) -> None:
    files = [path for name, path in MODULES.items() if name.split(".")[1:2] == [room]]
    assert files
    found = {str(path.relative_to(ROOT)): upward(room, path.read_text(encoding="utf-8")) for path in files}
    assert not {path: names for path, names in found.items() if names}


def test_an_import_that_goes_up_is_seen() -> None:
    assert upward("nn", "def f():\n    from ilmconvert.surgery import plan") == ["ilmconvert.surgery.plan"]
    assert upward("nn", "from ilmconvert import load") == ["ilmconvert"]
    assert upward("cli", "from ilmconvert.nn.layer import ILMNorm") == []


def test_no_two_files_import_each_other() -> None:
    graph = {name: imported(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
