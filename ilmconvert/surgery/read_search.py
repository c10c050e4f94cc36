"""A piece of code searched for reads of norms' values: what each of its expressions may give, for the very model."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.held_values import attribute_of, elements_of, is_getattr, item_of

#: What others may ask of a norm, and a new layer lacks or means otherwise.
VALUES = frozenset(
    {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "momentum", "track_running_stats"}
)
#: Asked for by ``isinstance``.
CLASS = "class"
# What a new layer has as well, and what of it doesn't change with the values of a tensor.
_PARAMETERS = frozenset({"weight", "bias"})
_METADATA = frozenset(
    {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "is_meta", "requires_grad"}
)
_ITERATORS = frozenset({"enumerate", "zip", "reversed", "list", "tuple", "iter", "sorted"})
_VIEWS = frozenset({"values", "items", "children", "modules", "named_children", "named_modules"})
_AT_MOST = 256  # objects that one expression is followed to


class Call(NamedTuple):
    """A function that is given a norm, and what its parameters may be."""

    function: Any
    scope: dict[str, list[Any]]


class ReadSearch(ast.NodeVisitor):
    """Reads of norms in a piece of code.

    Args:
        scope: what each local name may be.
        norms: by ``id``.
        names: the global names of the code.

    Attributes:
        reads: the ``id`` of a norm, and what is asked of it.
        calls: functions that are given a norm, and may read it.
    """

    def __init__(
        self, scope: dict[str, list[Any]], norms: Mapping[int, nn.Module], names: Mapping[str, Any] | None = None
    ) -> None:
        self.scope, self.norms, self.names = scope, norms, names or {}
        self.reads: list[tuple[int, str]] = []
        self.calls: list[Call] = []

    def visit_Attribute(self, node: ast.Attribute) -> None:
        inner = node.value
        if node.attr in _METADATA and isinstance(inner, ast.Attribute) and inner.attr in _PARAMETERS:
            self.visit(inner.value)
            return
        if node.attr in VALUES and isinstance(node.ctx, ast.Load):
            self._read(node.value, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if is_getattr(node):
            self._read(node.args[0], str(node.args[1].value))  # type: ignore[attr-defined]
        elif isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
            self._ask_for_class(*node.args)
        else:
            self._follow(node)
        self.generic_visit(node)

    def _ask_for_class(self, holder: ast.expr, classes: ast.expr) -> None:
        """Whether it is what its new layer isn't."""
        parts = classes.elts if isinstance(classes, ast.Tuple) else [classes]
        kinds = tuple(kind for part in parts if isinstance(kind := self._global(part), type))
        if not issubclass(ILMNorm, kinds):
            found = [o for o in self._values(holder) if id(o) in self.norms and isinstance(o, kinds)]
            self.reads += [(id(o), CLASS) for o in found]

    def _follow(self, node: ast.Call) -> None:
        """Into a function or method that is given a norm by itself."""
        function, bound = self._global(node.func), list[Any]()
        if isinstance(node.func, ast.Attribute) and function is None:
            bound = self._values(node.func.value)[:1]
            function = getattr(type(bound[0]), node.func.attr, None) if bound else None
        if not isinstance(function, FunctionType) or (function.__module__ or "").partition(".")[0] == "torch":
            return
        values = [bound] * bool(bound) + [self._values(argument) for argument in node.args]
        code = function.__code__
        scope = dict(zip(code.co_varnames[: code.co_argcount], values, strict=False))
        scope |= {keyword.arg: self._values(keyword.value) for keyword in node.keywords if keyword.arg}
        if any(id(value) in self.norms for some in scope.values() for value in some):
            self.calls.append(Call(function, scope))

    def _global(self, node: ast.expr) -> Any:
        """What a global name, or an attribute of one, is; None where it is none."""
        if isinstance(node, ast.Name):
            return None if node.id in self.scope else self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = self._global(node.value)
            return getattr(holder, node.attr, None) if isinstance(holder, ModuleType) else None
        return None

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
            return [v for o in self._values(node.value) for v in attribute_of(o, node.attr)]
        if isinstance(node, ast.Subscript):
            if isinstance(node.slice, ast.Constant):
                return [v for o in self._values(node.value) for v in item_of(o, node.slice.value)]
            return self._items(node.value)
        if isinstance(node, ast.IfExp):
            return [*self._values(node.body), *self._values(node.orelse)]
        if isinstance(node, ast.BoolOp):
            return [v for part in node.values for v in self._values(part)]
        if isinstance(node, ast.Call) and is_getattr(node):
            name = str(node.args[1].value)  # type: ignore[attr-defined]
            return [v for o in self._values(node.args[0]) for v in attribute_of(o, name)]
        return []

    def _items(self, node: ast.expr) -> list[Any]:
        """What a loop over an expression may give, parts of tuples as well."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in _ITERATORS:
                return [item for argument in node.args for item in self._items(argument)]
            if isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
                all_of_them = "modules" in node.func.attr
                return [i for o in self._values(node.func.value) for i in elements_of(o, all_of_them)]
        if isinstance(node, ast.Tuple | ast.List):
            return [value for part in node.elts for value in self._part(part)]
        return [item for o in self._values(node) for item in elements_of(o)][:_AT_MOST]

    def _part(self, node: ast.expr) -> list[Any]:
        """What a part of a tuple that is written there may be."""
        return self._items(node.value) if isinstance(node, ast.Starred) else self._values(node)
