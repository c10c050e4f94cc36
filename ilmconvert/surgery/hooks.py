"""The hooks of a module for the one that takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def adopt_hooks(layer: nn.Module, module: nn.Module, take: Callable[[Any], Any] = lambda value: value) -> None:
    """Give ``layer`` the forward and backward hooks of ``module``: what ``take`` makes of them, by default themselves.

    >>> old, new = nn.Identity(), nn.Identity()
    >>> handle = old.register_forward_hook(lambda module, args, result: result + 1)
    >>> adopt_hooks(new, old)
    >>> new(1)
    2
    """
    for name in _HOOKS:
        if getattr(module, name, None):
            setattr(layer, name, take(getattr(module, name)))
    layer._is_full_backward_hook = module._is_full_backward_hook
