"""The one way in which a module takes another one's place: wherever the model holds it, or nowhere."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.module_state import copy_of
from ilmconvert.surgery.references import Slot, references

#: What to do about a place that can't be written.
CURE = "and can't be changed: hold it in an attribute, list or dict instead, or exclude it"
_COPY_CURE = "use inplace=True, or give the model a __deepcopy__"


class _Change(NamedTuple):
    slot: Slot
    before: Any
    after: Any


def replace_modules(
    model: nn.Module, new: Mapping[nn.Module, nn.Module], *, strangers: Iterable[nn.Module] = ()
) -> nn.Module:
    """Put modules in the place of others, in place, wherever ``model`` holds these; returns the root.

    Registered children, attributes, items of lists, dicts, sets and tuples, arguments of a ``functools.partial``,
    however nested, and attributes of objects that the model's modules hold: all get the one new module.

    Args:
        model: whose modules are replaced.
        new: the new module for each old one.
        strangers: modules that ``model`` mustn't hold: those of which it was copied.

    Raises:
        ConversionError: a place that can't be written (a variable that a function has closed over, a bound method), or
            a stranger; the message names it, and nothing has changed.

    >>> model = nn.Sequential(nn.BatchNorm2d(3))
    >>> model.norms = [model[0]]
    >>> _ = replace_modules(model, {model[0]: nn.Identity()})
    >>> model[0], model.norms
    (Identity(), [Identity()])
    """
    with replaced(model, new, strangers=strangers) as root:
        return root


@contextmanager
def replaced(
    model: nn.Module, new: Mapping[nn.Module, nn.Module], *, strangers: Iterable[nn.Module] = ()
) -> Iterator[nn.Module]:
    """:func:`replace_modules`, undone if the block raises.

    >>> model = nn.Sequential(nn.BatchNorm2d(3))
    >>> try:
    ...     with replaced(model, {model[0]: nn.Identity()}):
    ...         raise KeyError
    ... except KeyError:
    ...     type(model[0]).__name__
    'BatchNorm2d'
    """
    by_id = {id(old): module for old, module in new.items()}
    changes = _changes(model, by_id, {id(module) for module in strangers})
    done: list[_Change] = []
    try:
        for change in changes:
            done.append(change)
            _write(change.slot, change.after)
        yield by_id.get(id(model), model)
    except BaseException:
        for change in reversed(done):
            _write(change.slot, change.before)
        raise


def copy_with(
    model: nn.Module, old: Mapping[str, nn.Module], make: Callable[[nn.Module, nn.Module], nn.Module]
) -> nn.Module:
    """A deep copy of ``model`` with other modules in the place of some.

    Args:
        model: stays as it is.
        old: modules of ``model``, by name.
        make: the new module for one of them; it is given that and its copy, whose parts it may use,
            but not the copy itself.

    Raises:
        ConversionError: the model can't be copied, or see :func:`replace_modules`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> copy_with(model, {"1": model[1]}, lambda old, copied: nn.LeakyReLU(0.1, copied.inplace))[1]
    LeakyReLU(negative_slope=0.1)
    """
    memo: dict[int, Any] = {}
    try:
        result = copy_of(model, memo=memo)
        _copy_what_hangs_on_tensors(model, memo)
    except (RuntimeError, TypeError, ValueError) as e:
        if any(nn.parameter.is_lazy(t) for t in (*model.parameters(), *model.buffers())):
            raise ConversionError("the model isn't initialised yet: run one batch through it first") from e
        raise ConversionError(f"the model can't be copied ({e}); use inplace=True") from e
    by_name = dict(result.named_modules(remove_duplicate=False))
    new = {}
    for name, module in old.items():
        copied = memo.get(id(module), by_name.get(name))
        if copied is None or copied is module or type(copied) is not type(module):
            raise ConversionError(f"a copy of {type(model).__name__} isn't one: it lacks {name!r}; use inplace=True")
        new[copied] = make(module, copied)
    return replace_modules(result, new, strangers=old.values())


def _copy_what_hangs_on_tensors(model: nn.Module, memo: dict[int, Any]) -> None:
    """Attributes and gradient hooks of tensors, which torch's deep copy of a parameter leaves behind."""
    for tensor in (*model.parameters(), *model.buffers()):
        copied = memo.get(id(tensor))
        if not isinstance(copied, Tensor) or copied is tensor:
            continue
        for name, value in vars(tensor).items():
            if name not in vars(copied):
                vars(copied)[name] = copy.deepcopy(value, memo)
        if copied.requires_grad and not copied._backward_hooks:
            for hook in (tensor._backward_hooks or {}).values():
                copied.register_hook(copy.deepcopy(hook, memo))
        if copied.requires_grad and copied.is_leaf and not copied._post_accumulate_grad_hooks:
            for hook in (tensor._post_accumulate_grad_hooks or {}).values():
                copied.register_post_accumulate_grad_hook(copy.deepcopy(hook, memo))


def _changes(model: nn.Module, new: Mapping[int, nn.Module], strangers: set[int]) -> list[_Change]:
    """What has to be written, and where; raises if that can't be done."""
    slots: dict[tuple[int, Any], Slot] = {}
    missing = {key: module for key, module in new.items() if key != id(model)}
    for found in references(model, lambda module: id(module) in new or id(module) in strangers, instead=new):
        name = type(found.module).__name__
        if id(found.module) in strangers:
            raise ConversionError(f"a copy would still use the {name} of the model, through {found.path}: {_COPY_CURE}")
        if found.slot is None:
            raise ConversionError(f"{found.path} holds a {name} that is to be replaced, {CURE}")
        slots[id(found.slot.holder), found.slot.key] = found.slot
        missing.pop(id(found.module), None)
    if missing:
        raise ConversionError(f"the model doesn't hold {len(missing)} of the modules that are to be replaced")
    # A dict whose keys change is written whole.
    return [
        _Change(slot, _content(slot), _changed(slot, new))
        for (holder, key), slot in slots.items()
        if key is None or (holder, None) not in slots
    ]


def _content(slot: Slot) -> Any:
    holder, key = slot
    if key is None:
        return copy.copy(holder)
    return holder[key] if isinstance(holder, dict | list | deque) else getattr(holder, key)


def _changed(slot: Slot, new: Mapping[int, nn.Module]) -> Any:
    """What a slot is to hold."""
    content = _content(slot)
    if slot.key is not None:
        return _exchanged(content, new)
    if isinstance(content, dict):
        return {_exchanged(key, new): _exchanged(value, new) for key, value in content.items()}
    return {_exchanged(item, new) for item in content}


def _exchanged(value: Any, new: Mapping[int, nn.Module]) -> Any:
    """The value, or another where it is or holds an old module."""
    if isinstance(value, nn.Module):
        return new.get(id(value), value)
    parts: list[Any]
    if isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, tuple | frozenset):
        parts = list(value)
    else:
        return value
    items = [_exchanged(part, new) for part in parts]
    if all(a is b for a, b in zip(items, parts, strict=True)):
        return value
    kind: Any = type(value)
    if isinstance(value, partial):
        count = 1 + len(value.args)
        return kind(*items[:count], **dict(zip(value.keywords, items[count:], strict=True)))
    return kind(*items) if hasattr(value, "_fields") else kind(items)


def _write(slot: Slot, content: Any) -> None:
    holder, key = slot
    if key is None:
        holder.clear()
        holder.update(content)
    elif isinstance(holder, dict):
        dict.__setitem__(holder, key, content)
    elif isinstance(holder, list):
        list.__setitem__(holder, key, content)
    elif isinstance(holder, deque):
        holder[key] = content
    else:
        object.__setattr__(holder, key, content)
