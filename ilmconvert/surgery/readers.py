"""Readers of a norm's values: code that runs in a forward pass and asks a norm for more than its result.

What reads ``bn.weight`` or ``bn.running_mean`` gets another number, or an error, from the layer in the norm's place;
``isinstance(bn, nn.BatchNorm2d)`` another answer. The source text of what runs (the ``forward`` of every module, the
methods that it calls, functions that are given a norm, and hooks) is searched for such expressions, which are followed
through attributes, items, loops and local variables of the very model. Nothing runs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from torch import nn

from ilmconvert.surgery.read_search import CLASS, VALUES, ReadSearch

_REMEMBERED = 1024
# So many functions that pass a norm on to the next are followed.
_DEEP = 3
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Reader(NamedTuple):
    """Code that reads a value of a norm; ``str()`` of it says so."""

    norm: nn.Module
    attribute: str
    who: str

    def __str__(self) -> str:
        return f"{self.who} {'asks for' if self.attribute == CLASS else 'reads'} its {self.attribute}"


def readers(model: nn.Module, norms: Iterable[nn.Module]) -> Iterator[Reader]:
    """What is run in a forward pass of ``model`` and reads values of these norms, themselves excepted.

    Code without source text (written at a prompt, compiled) isn't searched.
    """
    known = {id(norm): norm for norm in norms}
    inside = {id(module) for norm in known.values() for module in norm.modules()}
    for name, module in model.named_modules():
        if id(module) not in inside:
            for function in _run_by_forward(type(module)):  # type: ignore[arg-type]
                where = f"{type(module).__name__}.{function.__name__}{f' ({name})' if name else ''}"
                yield from _found(function, 0, module, known, where)
        for kind in _HOOKS:
            for hook in getattr(module, kind).values():
                function_, index = _function(hook, 0)
                if function_ is not None:
                    yield from _found(function_, index, module, known, f"a hook of {name or 'the root'}")


def _found(
    function: FunctionType, index: int, module: nn.Module, norms: Mapping[int, nn.Module], who: str
) -> Iterator[Reader]:
    """The reads in a function whose argument number ``index`` is ``module``."""
    code = function.__code__
    if index < code.co_argcount:
        yield from _reads(function, {code.co_varnames[index]: [module]}, norms, who, _DEEP)


def _reads(
    function: FunctionType, scope: dict[str, list[Any]], norms: Mapping[int, nn.Module], who: str, depth: int
) -> Iterator[Reader]:
    """The reads in a function, and in those to which it gives a norm."""
    names = _names(function.__code__)
    if not names & (VALUES | {"isinstance"}) and not _calls_a_reader(function, scope):
        return
    tree = _tree(function)
    if tree is None:
        return
    search = ReadSearch(scope, norms, function.__globals__)
    for part in tree.body if isinstance(tree.body, list) else [tree.body]:
        search.visit(part)
    yield from (Reader(norms[key], attribute, who) for key, attribute in search.reads)
    for call in search.calls if depth else ():
        yield from _reads(call.function, call.scope, norms, f"{call.function.__name__}, called by {who},", depth - 1)


def _calls_a_reader(function: FunctionType, scope: Mapping[str, list[Any]]) -> bool:
    """Whether a function may give a norm to one that reads values of its arguments, or passes them on."""
    owners = {type(value) for values in scope.values() for value in values if isinstance(value, nn.Module)}
    for name in _names(function.__code__):
        called = [function.__globals__.get(name), *(getattr(owner, name, None) for owner in owners)]
        own = [one for one in called if isinstance(one, FunctionType) and one.__code__.co_argcount]
        if any((one.__module__ or "").partition(".")[0] != "torch" and one is not function for one in own):
            return True
    return False


@lru_cache(_REMEMBERED)
def _run_by_forward(cls: type) -> tuple[FunctionType, ...]:
    """``forward`` and the methods and properties that it may run, those of torch excepted."""
    found: dict[FunctionType, None] = {}
    names, done = ["forward"], set[str]()
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        for function in _definitions(cls, name):
            found[function] = None
            used = _names(function.__code__)
            names += used
            if "super" not in used:
                break
    return tuple(found)


def _definitions(cls: type, name: str) -> Iterator[FunctionType]:
    for base in cls.__mro__:
        function = vars(base).get(name)
        if isinstance(function, property):
            function = function.fget
        if isinstance(function, FunctionType) and (function.__module__ or "").partition(".")[0] != "torch":
            yield function


def _function(hook: Any, index: int) -> tuple[FunctionType | None, int]:
    """The function behind a hook, and which of its arguments gets the hook's first."""
    if isinstance(hook, FunctionType):
        return hook, index
    if isinstance(hook, MethodType):
        return _function(hook.__func__, index + 1)
    if isinstance(hook, partial):
        return _function(hook.func, index + len(hook.args))
    return _function(vars(type(hook)).get("__call__"), index + 1) if "__call__" in vars(type(hook)) else (None, 0)


@lru_cache(_REMEMBERED)
def _names(code: CodeType) -> frozenset[str]:
    """All names and attributes that some code uses, inner functions included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*inner) | {c for c in code.co_consts if isinstance(c, str) and c in VALUES}


@lru_cache(_REMEMBERED)
def _tree(function: FunctionType) -> ast.FunctionDef | ast.Lambda | None:
    """The syntax tree of a function, where its source text is there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # a lambda may stand in the middle of an expression
        return None
    count = function.__code__.co_argcount
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            return node
        if isinstance(node, ast.Lambda) and (function.__name__, len(node.args.args)) == ("<lambda>", count):
            return node
    return None
