"""Who holds a module: every place from which a model can reach one, registered or not.

``nn.Module`` registers its children in ``_modules``. A model may hold the same module a second time, or only, in an
attribute, a list, a dict or a tuple, in an object of its own, or inside a function; all of these are looked through.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from ilmconvert.surgery.fixed_references import WEAKLY, fixed_references, is_array

# What a module keeps for itself: tensors hold no modules, and its children come under their own names.
_SKIPPED = frozenset({"_parameters", "_buffers", "_modules"})
_LEAVES = (type, ModuleType, torch.Tensor, torch.UntypedStorage, torch.Generator, logging.Logger, logging.Handler)
# Made anew for the place that holds them, where something in them changes.
_IMMUTABLE = (tuple, frozenset, partial)


class Slot(NamedTuple):
    """A place that can be written: an item of a dict or list, an attribute, or (key None) a whole set or dict."""

    holder: Any
    key: Any


class Reference(NamedTuple):
    """One reference to a module.

    Attributes:
        module: what is held.
        path: where, from the root, as Python writes it.
        slot: where another module can be put in its place; None where that can't be done.
    """

    module: nn.Module
    path: str
    slot: Slot | None


class _Visit(NamedTuple):
    value: Any
    steps: tuple[Any, str] | None  # the steps before, and this one
    slot: Slot | None
    registered: bool = False


def references(
    model: nn.Module, wanted: Callable[[nn.Module], bool], *, instead: Mapping[int, nn.Module] | None = None
) -> Iterator[Reference]:
    """Every reference to a wanted module that can be reached from ``model``, the root itself left out.

    What can't be written comes last: variables that a function uses, its defaults, objects of bound methods, attributes
    of classes, weak references, iterators.

    Args:
        model: isn't changed.
        wanted: tells which modules.
        instead: by ``id``, modules that will be replaced, and by what: what the new one holds counts.

    >>> norm = nn.BatchNorm2d(3)
    >>> model = nn.Sequential(norm)
    >>> model.others = [(norm, 1)]
    >>> [found.path for found in references(model, lambda module: module is norm)]
    ['0', 'others[0][0]']
    """
    instead = {} if instead is None else instead
    seen: dict[int, Any] = {}
    classes = set[type]()
    later: deque[_Visit] = deque()
    queue: deque[_Visit] = deque([_Visit(model, None, None)])
    while queue or later:
        visit = queue.popleft() if queue else later.popleft()
        value = visit.value
        is_proxy = type(value) in weakref.ProxyTypes
        if is_proxy or isinstance(value, _LEAVES):
            later.extend(_fixed(visit, classes) if is_proxy else ())
            continue
        if isinstance(value, nn.Module):
            if value is not model and wanted(value):
                yield Reference(value, _path(visit), visit.slot)
            if id(value) in seen or _is_outside(visit, model):
                continue
            visit = visit._replace(value=instead.get(id(value), value))
        elif id(value) in seen and not isinstance(value, _IMMUTABLE):
            continue
        seen[id(value)] = value  # and kept, so that no other object gets its id
        queue.extend(inner for inner in _inside(visit) if _may_hold(inner.value))
        later.extend(_fixed(visit, classes))


def _fixed(visit: _Visit, classes: set[type]) -> Iterator[_Visit]:
    for item, step in fixed_references(visit.value, classes):
        if _may_hold(item):
            yield _Visit(item, (visit.steps, step), None)


def _may_hold(value: Any) -> bool:
    return gc.is_tracked(value) or is_array(value)


def _path(visit: _Visit) -> str:
    steps, parts = visit.steps, list[str]()
    while steps is not None:
        steps, step = steps
        parts.append(step)
    return "".join(reversed(parts)).removeprefix(".")


def _is_outside(visit: _Visit, model: nn.Module) -> bool:
    """Whether the visited module is no part of the model: what holds it, or what is only referred to."""
    if visit.steps is None or visit.registered:
        return False
    return visit.steps[1] == WEAKLY or any(module is model for module in visit.value.modules())


def _inside(visit: _Visit) -> Iterator[_Visit]:
    """What a value holds in places that can be written, or would be if it could be written itself."""
    value, steps = visit.value, visit.steps
    if isinstance(value, nn.Module):
        for name, child in value._modules.items():
            yield _Visit(child, (steps, f".{name}"), Slot(value._modules, name), True)
        for name, tensor in (*value._parameters.items(), *value._buffers.items()):
            yield from (() if tensor is None else _attributes_of_tensor(tensor, (steps, f".{name}")))
        yield from _attributes(value, steps, _SKIPPED)
    elif isinstance(value, partial):
        parts = (value.func, *value.args, *value.keywords.values())
        yield from (_Visit(item, (steps, " (a functools.partial)"), visit.slot) for item in parts)
    elif type(value).__module__ == nn.Module.__module__:
        # A hook that is given its module, which it refers to weakly: the hook goes where its module goes.
        yield from _attributes(value, steps, frozenset({"module"}))
    elif not isinstance(value, FunctionType | MethodType):
        yield from _items(visit)
        yield from _attributes(value, steps)


def _items(visit: _Visit) -> Iterator[_Visit]:
    """What a container holds, past the methods that its class may override."""
    value, steps = visit.value, visit.steps
    if isinstance(value, dict):
        for key, item in dict.items(value):
            shown = repr(key) if isinstance(key, str | int) else type(key).__name__
            yield _Visit(key, (steps, f" (the key {shown})"), Slot(value, None))
            yield _Visit(item, (steps, f"[{shown}]"), Slot(value, key))
    elif isinstance(value, list):
        for index, item in enumerate(list.__iter__(value)):
            yield _Visit(item, (steps, f"[{index}]"), Slot(value, index))
    elif isinstance(value, deque):
        for index, item in enumerate(value):
            yield _Visit(item, (steps, f"[{index}]"), Slot(value, index))
    elif isinstance(value, set):
        yield from (_Visit(item, (steps, " (an element)"), Slot(value, None)) for item in value)
    elif isinstance(value, tuple | frozenset):
        yield from (_Visit(item, (steps, f"[{index}]"), visit.slot) for index, item in enumerate(value))


def _attributes_of_tensor(tensor: torch.Tensor, steps: tuple[Any, str]) -> Iterator[_Visit]:
    """What was hung on a tensor."""
    own = vars(tensor)
    yield from (_Visit(item, (steps, f".{name}"), Slot(own, name)) for name, item in own.items())


def _attributes(value: Any, steps: tuple[Any, str] | None, skipped: frozenset[str] = frozenset()) -> Iterator[_Visit]:
    own = None
    with suppress(Exception):  # objects that make their attributes when asked
        own = value.__dict__
    if isinstance(own, dict):
        for name, item in own.items():
            if name not in skipped and not _is_empty(item):
                yield _Visit(item, (steps, f".{name}"), Slot(own, name))
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield _Visit(getattr(value, name), (steps, f".{name}"), Slot(value, name))


def _is_empty(item: Any) -> bool:
    """Whether an attribute is a dict of nothing: every module has ten, for hooks."""
    return type(item) in (dict, OrderedDict) and not item and not getattr(item, "__dict__", None)
