"""Readers of a norm's values: code that runs in a forward pass and asks a norm for more than its result.

What reads ``bn.weight`` or ``bn.running_mean`` gets another number, or an error, from the layer in the norm's place.
The source text of what runs (the ``forward`` of every module, the methods that it calls, and hooks) is searched for
such expressions, which are followed through attributes, items, loops and local variables of the very model. Nothing
runs.
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

#: What others may ask of a norm, and a new layer lacks or means otherwise.
VALUES = frozenset(
    {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "momentum", "track_running_stats"}
)
# What a new layer has as well, and what of it doesn't change with the values of a tensor.
_PARAMETERS = frozenset({"weight", "bias"})
_METADATA = frozenset(
    {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "is_meta", "requires_grad"}
)
_ITERATORS = frozenset({"enumerate", "zip", "reversed", "list", "tuple", "iter", "sorted"})
_VIEWS = frozenset({"values", "items", "children", "modules", "named_children", "named_modules"})
_REMEMBERED = 1024
_AT_MOST = 256  # objects that one expression is followed to
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Reader(NamedTuple):
    """Code that reads a value of a norm; ``str()`` of it says so."""

    norm: nn.Module
    attribute: str
    who: str

    def __str__(self) -> str:
        return f"{self.who} reads its {self.attribute}"


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
    if not _names(function.__code__) & VALUES:
        return
    tree = _tree(function)
    if tree is None:
        return
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    if index < len(arguments):
        search = _Search({arguments[index].arg: [module]}, norms)
        for part in tree.body if isinstance(tree.body, list) else [tree.body]:
            search.visit(part)
        yield from (Reader(norms[key], attribute, who) for key, attribute in search.reads)


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


class _Search(ast.NodeVisitor):
    """Reads of norms in a piece of code; ``scope`` holds what each local name may be."""

    def __init__(self, scope: dict[str, list[Any]], norms: Mapping[int, nn.Module]) -> None:
        self.scope, self.norms = scope, norms
        self.reads: list[tuple[int, str]] = []

    def visit_Attribute(self, node: ast.Attribute) -> None:
        inner = node.value
        if node.attr in _METADATA and isinstance(inner, ast.Attribute) and inner.attr in _PARAMETERS:
            self.visit(inner.value)
            return
        if node.attr in VALUES and isinstance(node.ctx, ast.Load):
            self._read(node.value, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _is_getattr(node):
            self._read(node.args[0], str(node.args[1].value))  # type: ignore[attr-defined]
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        truth = self._truth(node.test)
        self.visit(node.test)
        for part in (*node.body,) if truth is not False else ():
            self.visit(part)
        for part in (*node.orelse,) if truth is not True else ():
            self.visit(part)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def _of_comprehension(self, node: Any) -> None:
        for generator in node.generators:  # before the element, which uses their names
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _of_comprehension

    def _read(self, holder: ast.expr, attribute: str) -> None:
        if attribute in VALUES:
            self.reads += [(id(o), attribute) for o in self._values(holder) if id(o) in self.norms]

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.scope[target.id] = self._values(value)
        elif isinstance(target, ast.Tuple | ast.List):
            values = value.elts if isinstance(value, ast.Tuple | ast.List) else [value] * len(target.elts)
            for one, its in zip(target.elts, values, strict=False):
                self._bind(one, its) if its is not value else self._loop(one, value)

    def _loop(self, target: ast.expr, iterated: ast.expr) -> None:
        items = self._items(iterated)
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self.scope[node.id] = items

    def _truth(self, test: ast.expr) -> bool | None:
        """Whether a condition holds for the very model; None where that can't be told, or changes with its mode."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            decisive = isinstance(test.op, ast.Or)
            parts = [self._truth(part) for part in test.values]
            return decisive if decisive in parts else None if None in parts else not decisive
        if isinstance(test, ast.Attribute) and test.attr != "training":
            values = self._values(test)
            return values[0] if len(values) == 1 and isinstance(values[0], bool) else None
        return None

    def _values(self, node: ast.expr) -> list[Any]:
        """What an expression may give, as far as it can be followed."""
        if isinstance(node, ast.Name):
            return self.scope.get(node.id, [])
        if isinstance(node, ast.Attribute):
            return [v for o in self._values(node.value) for v in _attribute(o, node.attr)]
        if isinstance(node, ast.Subscript):
            if isinstance(node.slice, ast.Constant):
                return [v for o in self._values(node.value) for v in _item(o, node.slice.value)]
            return self._items(node.value)
        if isinstance(node, ast.IfExp):
            return [*self._values(node.body), *self._values(node.orelse)]
        if isinstance(node, ast.BoolOp):
            return [v for part in node.values for v in self._values(part)]
        if isinstance(node, ast.Call) and _is_getattr(node):
            name = str(node.args[1].value)  # type: ignore[attr-defined]
            return [v for o in self._values(node.args[0]) for v in _attribute(o, name)]
        return []

    def _items(self, node: ast.expr) -> list[Any]:
        """What a loop over an expression may give, parts of tuples as well."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in _ITERATORS:
                return [item for argument in node.args for item in self._items(argument)]
            if isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
                all_of_them = "modules" in node.func.attr
                return [i for o in self._values(node.func.value) for i in _elements(o, all_of_them)]
        if isinstance(node, ast.Tuple | ast.List):
            return [value for part in node.elts for value in self._values(part)]
        return [item for o in self._values(node) for item in _elements(o)][:_AT_MOST]


def _is_getattr(node: ast.Call) -> bool:
    named = isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1
    return named and isinstance(node.args[1], ast.Constant)


def _attribute(value: Any, name: str) -> list[Any]:
    own = getattr(value, "__dict__", {})
    if name in own:
        return [own[name]]
    child = value._modules.get(name) if isinstance(value, nn.Module) else None
    return [] if child is None else [child]


def _item(value: Any, key: Any) -> list[Any]:
    if isinstance(value, nn.Module):
        value = value._modules if isinstance(value, nn.ModuleDict) else list(value._modules.values())
    try:
        return [value[key]] if isinstance(value, dict | list | tuple) else []
    except (LookupError, TypeError):
        return []


def _elements(value: Any, with_inner: bool = False) -> list[Any]:
    if isinstance(value, nn.Module):
        return list(value.modules() if with_inner else value.children())
    if isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
