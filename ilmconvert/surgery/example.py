"""A conversion tried on an example: whether the result computes what the model did, and what is to blame if not.

Most of what looks at a norm beside calling it is known before a conversion; the rest shows in its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError, ModelError
from ilmconvert.surgery.carry_out import carry_out
from ilmconvert.surgery.difference import ROUNDING, Difference
from ilmconvert.surgery.module_state import copy_of, evaluating
from ilmconvert.surgery.outputs import map_tensors, outputs
from ilmconvert.surgery.paused_forward import run_side_by_side
from ilmconvert.surgery.plan import Plan, make_plan
from ilmconvert.surgery.record_calls import Call
from ilmconvert.surgery.watched import Read, watched

# What a model that doesn't run in double precision may differ by.
_COARSE = 1e-3


class Differs(Exception):
    """The result computes something else than the model, or nothing: what it raised is the cause."""


@dataclass(frozen=True)
class Example:
    """Inputs of a model, and what it makes of them.

    Attributes:
        args, kwargs: of ``model.forward``.
        expected: the tensors that the model returned.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, given: Any) -> Example:
        """The example that a user gave: a tensor, a tuple or list of positional inputs, or a mapping of named ones.

        Raises:
            ConversionError: the model can't run on it, or returns nothing that can be compared.
        """
        if isinstance(given, Mapping):
            found = cls((), dict(given))
        else:
            found = cls(tuple(given) if isinstance(given, tuple | list) else (given,), {})
        try:
            expected = found.run(model)
        except Exception as e:
            raise ConversionError(f"the model itself fails on the example: {_one_line(e)}") from e
        if not expected:
            raise ConversionError(f"{type(model).__name__} returns no tensor for the example that could be compared")
        if not all(t.isfinite().all() for t in expected):
            raise ConversionError("the model itself gives NaN or infinity for the example; take another one")
        return cls(found.args, found.kwargs, tuple(expected))

    def run(self, model: nn.Module) -> list[Tensor]:
        """What a model returns in evaluation mode; the same random numbers, where it takes any."""
        devices = {t.device for t in outputs([*self.args, *self.kwargs.values()]) if t.is_cuda}
        with torch.random.fork_rng(devices=devices), evaluating(model), torch.no_grad():
            torch.manual_seed(0)
            return [t.clone() for t in outputs(model(*_copied(self.args), **_copied(dict(self.kwargs))))]

    def check(self, result: nn.Module, *, exact: bool) -> None:
        """Raise :class:`Differs` unless ``result`` runs, and computes what the model does if it is to be exact."""
        try:
            found = self.run(result)
        except Exception as e:
            raise Differs from e
        if [t.shape for t in found] != [t.shape for t in self.expected]:
            raise Differs
        limits = [ROUNDING[t.dtype] for t in self.expected if t.dtype in ROUNDING]
        if exact and not _difference(self.expected, found) <= min(limits, default=0.0):
            raise Differs

    def double(self) -> Example:
        """The same inputs in double precision, where they are floating-point numbers."""
        return Example(_in_double(self.args), {name: _in_double(value) for name, value in self.kwargs.items()})


def find_difference(model: nn.Module, the_plan: Plan, example: Any) -> str | None:
    """Why the conversion of ``model`` by a plan computes something else on an example; None if all is rounding.

    Looks at copies in double precision, where rounding doesn't matter, of a model that runs in it.

    Args:
        model: isn't changed.
        the_plan: its plan; only the settings are used.
        example: a tensor, a tuple or list of positional inputs, or a mapping of named ones.

    Raises:
        ConversionError: see :func:`ilmconvert.convert`.
    """
    given = example if isinstance(example, Example) else Example.of(model, example)
    try:
        source, inputs, limit = copy_of(model).double(), given.double(), ROUNDING[torch.float64]
        inputs.run(source)
    except Exception:  # types that are written into its code
        source, inputs, limit = copy_of(model), given, _COARSE
    own = make_plan(source, the_plan.settings)
    converted = carry_out(own, source, inplace=False)
    expected = inputs.run(source)
    # Apart from that: norms that are watched are of another class, which the model's code may ask for.
    with watched(source, {e.name: own.modules[e.name] for e in own.converted}) as reads, suppress(Exception):
        inputs.run(source)
    try:
        found = inputs.run(converted)
    except Exception as e:
        return f"it fails on the example: {_one_line(e)}{_reader(reads)}"
    error = _difference(expected, found)
    if error <= limit:
        return None
    if not _difference(expected, inputs.run(source)) <= limit:
        return "the model gives other outputs for the same example each time, so that nothing can be compared"
    blame = _blame(source, converted, inputs, limit, reads)
    return f"it computes something else on the example (relative error {error:.1e}): {blame}"


def _blame(source: nn.Module, converted: nn.Module, inputs: Example, limit: float, reads: list[Read]) -> str:
    """The first module, in the order in which they end, whose outputs differ, and what it reads."""
    first: list[str] = []

    def compare(a: Call, b: Call) -> None:
        if not first and not _difference(outputs(a.result), outputs(b.result)) <= limit:
            first.append(a.name.removeprefix("model").lstrip("."))

    there = {name for name, _ in converted.named_modules()}
    names = [f"model.{name}".rstrip(".") for name, _ in source.named_modules() if name in there]
    try:
        with evaluating(source, converted):
            run_side_by_side(_Called(source, inputs), _Called(converted, inputs), (), (), names, compare)
    except ModelError:
        return f"its layers run in another order{_reader(reads)}"
    if not first:
        return f"what the model does after its last layer{_reader(reads)}"
    name = first[0]
    kind = type(source.get_submodule(name)).__name__
    mine = [read for read in reads if read.reader == name] or reads
    return f"{name or 'the root'} ({kind}) is the first module to differ{_reader(mine)}"


class _Called(nn.Module):
    """A model with its inputs, some of which may be named."""

    def __init__(self, model: nn.Module, inputs: Example) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self) -> Any:
        torch.manual_seed(0)
        return self.model(*_copied(self._inputs.args), **_copied(dict(self._inputs.kwargs)))


def _reader(reads: list[Read]) -> str:
    return f"; {reads[0]}: exclude {reads[0].norm!r}" if reads else ""


def _difference(expected: Any, found: Any) -> float:
    difference = Difference()
    difference.add(expected, found)
    return difference.relative


def _in_double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _in_double(item) for name, item in value.items()}
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def _copied(value: Any) -> Any:
    """Inputs that a model may change in place."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return map_tensors(value, lambda t: t.clone())


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
