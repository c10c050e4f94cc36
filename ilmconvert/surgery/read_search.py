"""A piece of code searched for reads of norms' values: what each of its expressions may give, for the very model."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

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
_AT_MOST = 256  # objects that one expression is followed to


class ReadSearch(ast.NodeVisitor):
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
