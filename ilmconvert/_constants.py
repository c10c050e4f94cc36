"""What all packages share: a few names, and attributes that are imported when first asked for.

Imports nothing of the package or outside the standard library, so that the command line's help and the root stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: The ``architecture`` in config.json: the package to import, for whoever meets it in timm's "Unknown model".
ENTRYPOINT = "ilmconvert_model"


def lazy_attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose attributes are imported when first asked for.

    Args:
        package: its ``__name__``.
        homes: modules, relative to the package, and the names of theirs that it offers, separated by spaces.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *home_of})
