"""What goes into the modules of a running model, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """One call of a module: its name, the module, what went in and what came out (None before it has run)."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    result: Any = None


@contextmanager
def on_calls(modules: Mapping[str, nn.Module], act: Callable[[Call], None], *, before: bool = False) -> Iterator[None]:
    """While entered, hand every call of these modules to ``act``: after it, or ``before`` the module runs.

    >>> import torch
    >>> layer = nn.ReLU()
    >>> with on_calls({"relu": layer}, lambda call: print(call.name, call.args, call.result)):
    ...     _ = layer(torch.ones(1))
    relu (tensor([1.]),) tensor([1.])
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(add(partial(_hand_on, name, act)).remove)
        yield


def _hand_on(
    name: str, act: Callable[[Call], None], module: nn.Module, args: tuple[Any, ...], result: Any = None
) -> None:
    act(Call(name, module, args, result))
