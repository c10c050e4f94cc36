"""Arguments of constructors that a misspelt one may have meant."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator

from torch import nn

_UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
#: Those of timm's and torchvision's builders that many constructors pass on.
_USUAL = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool", "img_size", "features_only")


def argument_hint(error: Exception, library: str) -> str:
    """What to add to a message of Python on an argument that a class of ``library`` doesn't have.

    >>> argument_hint(TypeError("Linear.__init__() got an unexpected keyword argument 'in_featurs'"), "torch")
    '; did you mean in_features?'
    >>> argument_hint(TypeError("Linear.__init__() got an unexpected keyword argument 'colour'"), "torch")
    ''
    """
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return ""
    kind, name = found.groups()
    known = {name for cls in _classes(kind, library) for name in inspect.signature(cls).parameters}
    known |= set(_USUAL) - ({"in_chans", "features_only", "img_size"} if library == "torchvision" else set())
    near = difflib.get_close_matches(name, sorted(known - {"args", "kwargs"}), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _classes(name: str, library: str) -> Iterator[type[nn.Module]]:
    """The modules of that name that a library defines."""
    waiting, seen = [nn.Module], set[type[nn.Module]]()
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.add(cls)
            waiting += cls.__subclasses__()
            if cls.__name__ == name and cls.__module__.partition(".")[0] == library:
                yield cls
