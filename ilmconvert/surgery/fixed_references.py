"""Places that hold a module and that a conversion doesn't write: functions, classes, weak references, iterators."""

from __future__ import annotations

import dis
import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, partial
from types import CodeType, FunctionType, MappingProxyType, MethodType
from typing import Any

from torch import nn

#: What the path of a weak reference ends with. A copy's still refer to the parts of its source, parents mostly.
WEAKLY = " (a weak reference)"
#: Before the name of a global variable.
OF_A_GLOBAL = " (a function that uses the global "
_CONTAINERS = (list, tuple, dict, set, frozenset, partial)
# Of the built-in iterators, from iter([...]) to itertools.cycle: they tell what they hold to nobody but the collector.
_ITERATORS = ("builtins", "itertools")
# They ran before the conversion, and not again.
_OF_CONSTRUCTION = frozenset({"__init__", "__new__", "__post_init__"})


def fixed_references(value: Any, classes: set[type]) -> Iterator[tuple[Any, str]]:
    """What a value holds in places that can't be written, or that other models share; and how a path names these.

    Args:
        value: anything that a model holds.
        classes: those whose attributes and methods have been looked through; the class of a module is added.

    >>> norm = nn.BatchNorm2d(3)
    >>> [(found is norm, step) for found, step in fixed_references(weakref.ref(norm), set())]
    [(True, ' (a weak reference)')]
    """
    if type(value) in weakref.ProxyTypes:
        with suppress(Exception):  # of an object that is gone, or without that method
            yield value.__init__.__self__, WEAKLY
    elif isinstance(value, weakref.ref):
        if isinstance(target := value(), nn.Module):
            yield target, WEAKLY
    elif isinstance(value, nn.Module):
        yield from _of_class(type(value), classes)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, MethodType):
        yield value.__self__, " (a bound method)"
        yield value.__func__, ""
    elif isinstance(value, MappingProxyType):
        yield from ((item, "") for item in gc.get_referents(value))
    elif is_array(value):
        yield from ((item, " (an array)") for item in value.flat)
    elif isinstance(value, Iterator) and type(value).__module__ in _ITERATORS and not hasattr(value, "gi_frame"):
        yield from ((item, " (an iterator)") for item in gc.get_referents(value))


def is_array(value: Any) -> bool:
    """Whether a value is an array of objects, of which the garbage collector knows nothing."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and bool(value.dtype.hasobject)


def _of_class(cls: type, classes: set[type]) -> Iterator[tuple[Any, str]]:
    for base in cls.__mro__:
        if base in classes or base.__module__.partition(".")[0] in ("builtins", "torch"):
            continue
        classes.add(base)
        for name, item in vars(base).items():
            function = None if name in _OF_CONSTRUCTION else _behind(item)
            if isinstance(function, FunctionType):
                yield function, f".{name}"
            elif _holds_modules(item):
                yield item, f".{name} (of the class {base.__name__})"


def _behind(item: Any) -> Any:
    """The function of a method, class method or property."""
    if isinstance(item, property):
        return item.fget
    if isinstance(item, cached_property):
        return item.func
    return item.__func__ if isinstance(item, staticmethod | classmethod) else item


def _of_function(function: FunctionType) -> Iterator[tuple[Any, str]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents, f" (a function that uses {name})"
    for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()):
        yield item, " (a default of a function)"
    shared = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
    candidates = {name: item for name, item in shared.items() if _holds_modules(item)}
    if candidates:
        for name in _globals_of(code) & candidates.keys():
            yield candidates[name], f"{OF_A_GLOBAL}{name})"


def _names(code: CodeType) -> set[str]:
    """Of globals and attributes that a function, and those in it, use."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _globals_of(code: CodeType) -> set[str]:
    """:func:`_names` without the attributes."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return found.union(*(_globals_of(constant) for constant in code.co_consts if isinstance(constant, CodeType)))


def _holds_modules(item: Any) -> bool:
    if type(item) in weakref.ProxyTypes:
        return False
    if isinstance(item, _CONTAINERS):
        parts = item.args if isinstance(item, partial) else item.values() if isinstance(item, dict) else item
        return any(isinstance(part, nn.Module) for part in parts if type(part) not in weakref.ProxyTypes)
    return isinstance(item, nn.Module)
