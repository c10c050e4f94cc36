"""What an expression of a model's source text gives, of the very model, without running anything."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn


def is_getattr(node: ast.Call) -> bool:
    """Whether a call is ``getattr`` of a name that is written there."""
    named = isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1
    return named and isinstance(node.args[1], ast.Constant)


def attribute_of(value: Any, name: str) -> list[Any]:
    """What an object holds under this name itself; nothing is computed."""
    own = getattr(value, "__dict__", {})
    if name in own:
        return [own[name]]
    child = value._modules.get(name) if isinstance(value, nn.Module) else None
    return [] if child is None else [child]


def item_of(value: Any, key: Any) -> list[Any]:
    """The item of a container, of modules as well."""
    if isinstance(value, nn.Module):
        value = value._modules if isinstance(value, nn.ModuleDict) else list(value._modules.values())
    try:
        return [value[key]] if isinstance(value, dict | list | tuple) else []
    except (LookupError, TypeError):
        return []


def elements_of(value: Any, with_inner: bool = False) -> list[Any]:
    """What a loop over an object, or over its modules, gives; the parts of tuples one by one."""
    if isinstance(value, nn.Module):
        return list(value.modules() if with_inner else value.children())
    if isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
