"""Forward passes that stop at chosen modules, several side by side, so that no activation has to be kept.

Layers of two models are compared, or a layer is fitted on all batches at once, when every pass stands at it. One pass
runs at a time: the threads only keep the others' call stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import Any, NamedTuple

import torch
from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.surgery.record_calls import Call, on_calls

Inputs = tuple[Any, ...]


class _End(NamedTuple):
    result: Any


class _Cancelled(BaseException):
    """Unwinds a pass that isn't to go on; not an Exception, so that no model catches it."""


class PausedForward:
    """One forward pass without gradients, in a thread of its own.

    Attributes:
        model: what runs.
        modules: those of its modules at which it stops, by name.
        result: what the model returned, once the pass is over.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    result: Any

    def __init__(self, model: nn.Module, inputs: Inputs, modules: Mapping[str, nn.Module]) -> None:
        self.model, self.modules, self.result = model, modules, None
        self._inputs = inputs
        self._events: SimpleQueue[Call | _End | BaseException] = SimpleQueue()
        self._replies: SimpleQueue[bool] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)

    def advance(self) -> Call | None:
        """Run up to the next stop; None at the end of the pass."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._replies.put(True)
        event = self._events.get()
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, _End):
            self.result = event.result
            return None
        return event

    def cancel(self) -> None:
        """End the pass where it stands."""
        if self._thread.ident is not None:
            self._replies.put(False)
            self._thread.join()

    def stop(self, call: Call) -> None:
        """Wait at a module, if called inside this pass: passes may share their modules."""
        if get_ident() == self._thread.ident:
            self._events.put(call)
            if not self._replies.get():
                raise _Cancelled

    def _run(self) -> None:
        event: _End | BaseException
        try:
            with torch.no_grad():  # the setting of the other thread doesn't reach here
                event = _End(self.model(*self._inputs))
        except _Cancelled:
            return
        except BaseException as error:  # raised where the stop is waited for
            event = error
        self._events.put(event)


def run_together(
    passes: Sequence[PausedForward],
    visit: Callable[[Sequence[Call]], None],
    *,
    before: bool = False,
    disorder: Callable[[Sequence[str]], Exception],
) -> None:
    """Run several passes from stop to stop, and call ``visit`` with their calls whenever all of them stand at one.

    Args:
        passes: which have the same modules under the same names.
        visit: gets a call of each pass, all of the same name.
        before: whether the passes stop before their modules run, so that ``visit`` may change these, or after.
        disorder: makes the error for passes that stop at different modules, of the names.
    """
    with ExitStack() as stack:
        # All hooks stand before any pass runs.
        for each in passes:
            stack.enter_context(on_calls(each.modules, each.stop, before=before))
        for each in passes:
            stack.callback(each.cancel)
        while True:
            stops = [each.advance() for each in passes]
            calls = [stop for stop in stops if stop is not None]
            names = ["the end" if stop is None else stop.name for stop in stops]
            if len(set(names)) > 1:
                raise disorder(names)
            if not calls:
                return
            visit(calls)


def run_side_by_side(
    source: nn.Module,
    converted: nn.Module,
    source_inputs: Inputs,
    inputs: Inputs,
    names: Sequence[str],
    compare: Callable[[Call, Call], None],
) -> tuple[Any, Any]:
    """Run both models without gradients and hand every call of the named modules to ``compare``, in execution order.

    Each model waits after each named module until the two calls are compared. So no activation outlives its layer,
    and none is changed in place before it is seen.

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
    >>> _ = run_side_by_side(layer, layer, (x,), (x,), ["0", "1"], lambda a, b: print(a.name, b.result.shape))
    0 torch.Size([1, 2, 2])
    1 torch.Size([1, 4])
    """
    passes = [
        PausedForward(model, args, {name: model.get_submodule(name) for name in names})
        for model, args in ((source, source_inputs), (converted, inputs))
    ]
    run_together(passes, lambda calls: compare(*calls), disorder=_different_orders)
    return passes[0].result, passes[1].result


def _different_orders(names: Sequence[str]) -> ModelError:
    text = " meets ".join(reversed(names))
    return ModelError(f"the models run their layers in different orders ({text}); compare without layers")
