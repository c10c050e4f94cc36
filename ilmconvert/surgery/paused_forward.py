"""Two models run side by side, so that their layers can be compared without keeping any activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import Any, NamedTuple

import torch
from torch import nn

from ilmconvert.errors import ModelError


class Call(NamedTuple):
    """One call of a module: its name, what went in and what came out."""

    name: str
    args: tuple[Any, ...]
    result: Any


class _Result(NamedTuple):
    value: Any


class _Failure(NamedTuple):
    error: BaseException


class _Stopped(BaseException):
    """Ends the source's pass when the other one has failed; not an Exception, so that no model catches it."""


def run_in_lockstep(
    source: nn.Module,
    converted: nn.Module,
    source_inputs: tuple[Any, ...],
    inputs: tuple[Any, ...],
    names: Sequence[str],
    compare: Callable[[Call, Call], None],
) -> tuple[Any, Any]:
    """Run both models without gradients and hand every call of the named modules to ``compare``, in execution order.

    The source runs in a thread of its own and waits at each named module until the converted model has come there
    and the two calls are compared. So no activation outlives its layer, and none is changed in place before it is
    seen.

    Args:
        source, converted: models with the same modules under ``names``.
        source_inputs, inputs: positional arguments of either.
        names: dotted paths of modules.
        compare: called with the source's call and the converted model's.

    Returns:
        What the two models returned.

    Raises:
        ModelError: the models call the named modules in different orders.

    >>> layer = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> x = torch.ones(1, 2, 2)
    >>> _ = run_in_lockstep(layer, layer, (x,), (x,), ["0", "1"], lambda a, b: print(a.name, b.result.shape))
    0 torch.Size([1, 2, 2])
    1 torch.Size([1, 4])
    """
    offers: SimpleQueue[Call | _Result | _Failure] = SimpleQueue()
    replies: SimpleQueue[bool] = SimpleQueue()
    here = get_ident()

    def offer(call: Call) -> None:
        offers.put(call)
        if not replies.get():
            raise _Stopped

    def meet(call: Call) -> None:
        other = _next(offers)
        if not isinstance(other, Call) or other.name != call.name:
            raise _disorder(call.name, other)
        compare(other, call)
        replies.put(True)

    with ExitStack() as stack, torch.no_grad():
        # The models may share modules: each hook acts in one thread. All of them stand before either model runs.
        for name in names:
            for model, react, own_thread in ((source, offer, False), (converted, meet, True)):
                hook = _hook(name, react, here, own_thread)
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        worker = Thread(target=_run_source, args=(source, source_inputs, offers), daemon=True)
        worker.start()
        try:
            result = converted(*inputs)
            other = _next(offers)
            if not isinstance(other, _Result):
                raise _disorder("the end", other)
        finally:
            replies.put(False)
            worker.join()
    return other.value, result


def _run_source(source: nn.Module, inputs: tuple[Any, ...], offers: SimpleQueue[Call | _Result | _Failure]) -> None:
    try:
        with torch.no_grad():  # the setting of the other thread doesn't reach here
            offers.put(_Result(source(*inputs)))
    except _Stopped:
        pass
    except BaseException as error:  # raised where the result is waited for
        offers.put(_Failure(error))


def _hook(
    name: str, react: Callable[[Call], None], thread: int, inside: bool
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A forward hook that acts inside the thread only, or outside of it only."""

    def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if (get_ident() == thread) is inside:
            react(Call(name, args, result))

    return hook


def _next(offers: SimpleQueue[Call | _Result | _Failure]) -> Call | _Result:
    offer = offers.get()
    if isinstance(offer, _Failure):
        raise offer.error
    return offer


def _disorder(name: str, other: Call | _Result) -> ModelError:
    met = other.name if isinstance(other, Call) else "the end"
    return ModelError(f"the models run their layers in different orders ({name} meets {met}); compare without layers")
