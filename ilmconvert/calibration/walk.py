"""Several forward passes side by side, each stopping in front of every layer that is to be fitted.

A layer's input depends on the values of all layers before it. Running the network again for every layer would cost as
many passes as there are layers; here every batch waits in front of the layer while it is fitted, and then goes on.
One pass runs at a time: the threads only keep the others' call stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ilmconvert.errors import CalibrationError

Inputs = tuple[Any, ...]


class _Stop(NamedTuple):
    name: str
    x: Tensor


class _Cancelled(BaseException):
    """Unwinds a pass that isn't to go on; not an Exception, so that no model catches it."""


class _Pass:
    """One forward pass in a thread of its own."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model, self._inputs = model, inputs
        self._events: SimpleQueue[_Stop | BaseException | None] = SimpleQueue()
        self._replies: SimpleQueue[bool] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)

    def advance(self) -> _Stop | None:
        """Run up to the next stop; None at the end of the pass."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._replies.put(True)
        event = self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def cancel(self) -> None:
        """End the pass where it stands."""
        if self._thread.ident is not None:
            self._replies.put(False)
            self._thread.join()

    def stop(self, name: str, x: Tensor) -> None:
        """Wait in front of a layer, if called inside this pass."""
        if get_ident() == self._thread.ident:
            self._events.put(_Stop(name, x))
            if not self._replies.get():
                raise _Cancelled

    def _run(self) -> None:
        result: BaseException | None = None
        try:
            with torch.no_grad():  # the setting of the other thread doesn't reach here
                self._model(*self._inputs)
        except _Cancelled:
            return
        except BaseException as error:  # raised where the stop is waited for
            result = error
        self._events.put(result)


def walk(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Inputs],
    visit: Callable[[str, list[Tensor]], None],
) -> None:
    """Run ``model`` on all batches, and call ``visit(name, inputs)`` before each of ``layers`` runs.

    Args:
        model: in evaluation mode; runs without gradients.
        layers: parts of it by name; each takes one tensor.
        batches: positional arguments of ``model``.
        visit: gets the layer's input in every batch, and may change the layer's values before it runs.

    Raises:
        CalibrationError: the batches take different ways through the model.

    >>> layer = nn.BatchNorm1d(2).eval()
    >>> walk(nn.Sequential(layer), {"0": layer}, [(torch.ones(3, 2),)] * 2, lambda name, xs: print(name, len(xs)))
    0 2
    """
    passes = [_Pass(model, inputs) for inputs in batches]
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(_stopper(passes, name)).remove)
        for each in passes:
            stack.callback(each.cancel)
        while passes:
            stops = [each.advance() for each in passes]
            if len({None if stop is None else stop.name for stop in stops}) > 1:
                raise CalibrationError("the batches take different ways through the model; use inputs of one kind")
            if stops[0] is None:
                return
            visit(stops[0].name, [stop.x for stop in stops if stop is not None])


def _stopper(passes: Sequence[_Pass], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        for each in passes:
            each.stop(name, args[0])

    return hook
