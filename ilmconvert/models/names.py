"""Names of models: all of them, those with norm layers, and those close to a misspelt name."""

from __future__ import annotations

import csv
import difflib
import fnmatch
from importlib import resources
from types import ModuleType

LIBRARIES = ("timm", "torchvision")
COUNTS_FILE = "zoo_norms.csv"


def zoo(library: str) -> ModuleType:
    """The module for a library; imported late, since importing timm and torchvision takes seconds."""
    from ilmconvert.models import timm_zoo, torchvision_zoo

    return {"timm": timm_zoo, "torchvision": torchvision_zoo}[library]


def list_models(pattern: str | None = None) -> list[str]:
    """Names of timm's and torchvision's models (``torchvision/...``), those that match an fnmatch pattern.

    A pattern without "/" is held against torchvision's bare names, too.

    >>> list_models("test_resnet*")
    ['test_resnet']
    >>> list_models("resnet152")
    ['resnet152', 'torchvision/resnet152']
    """
    names = [*zoo("timm").names(), *(f"torchvision/{name}" for name in zoo("torchvision").names())]
    if pattern is None:
        return names
    return [
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.removeprefix("torchvision/"), pattern)
    ]


def stored_counts() -> dict[str, int]:
    """How many layers of a model would be converted, for the libraries' versions named in the packaged file.

    Needs neither torch nor a model library.

    >>> stored_counts()["resnet50"]
    53
    """
    text = resources.files("ilmconvert.models").joinpath(COUNTS_FILE).read_text(encoding="utf-8")
    rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    return {name: int(count) for name, count in rows}


def unknown(name: str) -> str:
    """The error message for a name that no library knows."""
    library, _, bare = name.rpartition("/")
    near = _near(name, list_models()) or _near(bare, list_models())
    if library in LIBRARIES:
        near = _near(bare, zoo(library).names()) or near
    hint = f"did you mean {' or '.join(near)}?" if near else "`ilmconvert list` shows the names"
    return f"unknown model {name!r}; {hint}"


def _near(name: str, names: list[str]) -> list[str]:
    stem, dot, _ = name.partition(".")
    if dot and stem in names:
        from ilmconvert.models import timm_zoo

        return difflib.get_close_matches(name, timm_zoo.tagged(stem), n=3, cutoff=0)
    return difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
