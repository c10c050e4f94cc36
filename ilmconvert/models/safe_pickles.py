"""Files of ``torch.save``, read by torch's weights-only unpickler: nothing that they name is imported or run.

Training scripts store much beside tensors: argument namespaces, numpy scalars, configurations, loggers. The unpickler
refuses every name that it wasn't told of. Here it is told of each name in the file, with a stand-in that does nothing:
numbers of numpy and standard containers become what they hold, objects of every other class become a
:class:`~ilmconvert.models.pickle_stand_ins.Foreign`.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import threading
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from ilmconvert.errors import one_line
from ilmconvert.models.pickle_stand_ins import STAND_INS, Foreign

#: Classes that scripts commonly store, and that a reader needs no word about.
_COMMON = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|collections\.\w+|pathlib\..*|datetime\.\w+|numpy\..*|copyreg\.\w+"
    r"|builtins\.(int|float|bool|str|bytes|list|tuple|dict|set|frozenset|slice|range|object|type|NoneType)"
    r"|torch\.torch_version\.TorchVersion"
)
_PICKLES_OF_OLD_FILES = 5
# The list of names that torch allows is one for the whole process.
_lock = threading.Lock()


class PickledCodeError(ValueError):
    """A file that can't be read without running code."""


def load_pickled(path: Path) -> tuple[Any, list[str]]:
    """What a file of ``torch.save`` holds, on the CPU, and the names of the classes whose objects were left unread.

    Raises:
        PickledCodeError: the unpickler refuses the file. Damaged files raise anything else.
    """
    left: set[str] = set()
    with _no_other_stand_ins():
        names = _names_in(path)
        stand_ins: dict[str, Any] = {name: STAND_INS.get(name) or _foreign(name, left) for name in names}
        for _ in range(2 * len(names) + 1):
            try:
                with safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                    content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if not _adapt(stand_ins, left, str(error)):
                    raise PickledCodeError(one_line(error)) from error
            else:
                return content, sorted(name for name in left if not _COMMON.fullmatch(name))
    raise PickledCodeError("its objects depend on each other in a way that isn't known here")


def _names_in(path: Path) -> list[str]:
    """The names in the file, less those that torch knows by itself where that can be told."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except pickle.UnpicklingError as error:  # of a later protocol
        raise PickledCodeError(str(error)) from error
    except ValueError:  # no zip archive: several pickles in a row, as torch wrote them before 1.6
        found: set[str] = set()
        with path.open("rb") as file:
            for _ in range(_PICKLES_OF_OLD_FILES):
                operations = pickletools.genops(file)
                found |= {_todays_name(str(name)) for code, name, _ in operations if code.name == "GLOBAL"}
        return sorted(found)


def _todays_name(written: str) -> str:
    """Pickles of torch's protocol call modules as Python 2 did (``__builtin__ int``)."""
    module, _, name = written.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _foreign(name: str, left: set[str], base: type = Foreign) -> type:
    """A stand-in for the class ``name``, which notes in ``left`` that it was used; ``base`` is what its objects are."""

    def new(cls: type, *args: Any) -> Any:
        left.add(name)
        return object.__new__(cls) if base is Foreign else base()

    return type(f"StandIn_{name.replace('.', '_')}", (Foreign,), {"__new__": new, "name": name})


def _adapt(stand_ins: dict[str, Any], left: set[str], error: str) -> bool:
    """Let a stand-in make dicts or lists where the unpickler says that the class is one of those; whether one was."""
    wanted = OrderedDict if "SETITEM" in error else list if "append" in error else None
    for name, stand_in in stand_ins.items():
        if wanted is not None and isinstance(stand_in, type) and f".{stand_in.__name__}'" in error:
            stand_ins[name] = _foreign(name, left, wanted)
            return True
    return False


@contextmanager
def _no_other_stand_ins() -> Iterator[None]:
    """Takes back, in the block, what the caller has allowed of the names that have a stand-in here."""
    with _lock:
        before = get_safe_globals()
        names = {g: g[1] if isinstance(g, tuple) else f"{g.__module__}.{g.__qualname__}" for g in before}
        clear_safe_globals()
        add_safe_globals([g for g in before if names[g] not in STAND_INS])
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)
