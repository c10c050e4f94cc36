"""Build a model's structure and shapes without values, at a cost that is bounded before anything is allocated.

A checkpoint from elsewhere may name any model with any arguments. Constructors allocate, loop and fill as these say,
so that a checkpoint of a kilobyte could ask for a terabyte, or for an hour.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from ilmconvert.checkpoint.safetensors_io import Entry, total_bytes
from ilmconvert.errors import ModelError
from ilmconvert.models.skip_init import skip_init
from ilmconvert.models.spec import ModelSpec

# Constructors work a few small things out on the CPU whatever the device, such as rates of drop path.
_SMALL_THINGS = 1 << 20


class Budget(NamedTuple):
    """What building a model without values may cost.

    Attributes:
        operations: calls of torch. The zoos' models take up to a hundred a tensor.
        creations: those that make a tensor from nothing. The zoos' models take a few a tensor, and a conversion
            leaves two of a BatchNorm's five tensors or more.
        nbytes: size of the largest tensor, and of all buffers together, were they allocated. Buffers that no file
            holds are the smaller part of every model.
        number: the largest constructor argument; what it counts is there in the file, or small.
    """

    operations: int
    creations: int
    nbytes: int
    number: int

    @classmethod
    def of(cls, entries: Mapping[str, Entry]) -> Budget:
        """For a model whose tensors these are.

        >>> Budget.of({"weight": Entry((20_000, 2), torch.float32)}).number
        20000
        """
        sizes = [size for entry in entries.values() if prod(entry.shape) for size in entry.shape]
        return cls(
            operations=1000 + 250 * len(entries),
            creations=1000 + 20 * len(entries),
            nbytes=(16 << 20) + 4 * total_bytes(entries),
            number=max(10_000, len(entries), *sizes),
        )

    def check_arguments(self, arguments: Any) -> None:
        """Raise :class:`OverBudget` for a number, text or list beyond all bounds in JSON values."""
        left = [arguments]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                left += value.values()
            elif isinstance(value, list):
                left += value
            size = abs(value) if isinstance(value, int | float) else len(value) if isinstance(value, str | list) else 0
            if not size <= self.number:
                raise OverBudget(f"{reprlib.repr(value)} is far beyond the sizes in the file")


class OverBudget(ValueError):
    """The model is much larger than the tensors that it is built for."""


@contextmanager
def within_budget(budget: Budget, *, values: bool = False) -> Iterator[None]:
    """Modules built inside of the block stay on the meta device and raise :class:`OverBudget` beyond ``budget``.

    A few constructors need the values of what they make (torchvision's RegNet). With ``values`` they get them, and all
    tensors together keep to ``budget.nbytes``.

    >>> with within_budget(Budget(operations=100, creations=100, nbytes=1 << 20, number=100)):
    ...     layer = torch.nn.Linear(3, 2)
    >>> layer.weight.device
    device(type='meta')
    """
    with (
        _Bounded(budget, budget.nbytes if values else _SMALL_THINGS),
        nullcontext() if values else torch.device("meta"),
    ):
        yield


def build_within_budget(spec: ModelSpec, budget: Budget) -> nn.Module:
    """The structure and shapes of a model, without values, on the meta device.

    Raises:
        ModelError: the model can't be built, or that would cost more than ``budget``.

    >>> budget = Budget(operations=2000, creations=1000, nbytes=1 << 22, number=1000)
    >>> build_within_budget(ModelSpec("timm", "test_resnet"), budget).fc.weight.device
    device(type='meta')
    """
    try:
        budget.check_arguments(spec.model_args)
        try:
            model = spec.build_within([skip_init(), within_budget(budget)])
        except ModelError as error:
            if not isinstance(error.__cause__, NotImplementedError):  # what the meta device says
                raise
            model = spec.build_within([skip_init(), within_budget(budget, values=True)])
        if sum(buffer.nbytes for buffer in model.buffers()) > budget.nbytes:
            raise OverBudget("its buffers are far beyond the file's tensors")
    except OverBudget as error:
        raise ModelError(spec.cannot_build(error)) from error
    return model.to("meta")


class _Bounded(TorchDispatchMode):
    """Counts operations; works out each result's size on the meta device before it comes to be elsewhere."""

    def __init__(self, budget: Budget, real_bytes: int) -> None:
        super().__init__()
        self._left, self._real_bytes = budget, real_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        stays = all(t.is_meta for t in tensors) and (tensors or str(kwargs.get("device")) == "meta")
        if not stays:
            # Where that fails the result depends on values, and is no larger than what it is taken from.
            with suppress(RuntimeError, NotImplementedError):
                self._real_bytes -= _check(func(*_to_meta(args), **_to_meta(kwargs)), self._real_bytes)
        result = func(*args, **kwargs)
        _check(result, self._left.nbytes)
        # A number that is written into a tensor makes a tensor of no dimensions.
        self._count(created=not tensors and isinstance(result, Tensor) and result.dim() > 0)
        return result

    def _count(self, created: bool) -> None:
        left = self._left
        self._left = left._replace(operations=left.operations - 1, creations=left.creations - created)
        if min(self._left[:2]) < 0:
            raise OverBudget("it has far more layers than the file")


def _to_meta(arguments: Any) -> Any:
    found = tree_map_only(Tensor, _twin, arguments)
    return {**found, "device": "meta"} if isinstance(found, dict) and "device" in found else found


def _twin(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def _check(result: Any, nbytes: int) -> int:
    """The bytes of new tensors, which are at most so many."""
    size = 0
    for t in tree_iter(result):
        if isinstance(t, Tensor):
            size += t.numel() * t.element_size()
            if size > nbytes:
                raise OverBudget(f"a tensor of shape {tuple(t.shape)} is far beyond the file's")
    return size
