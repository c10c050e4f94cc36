"""The tensors in whatever a model takes and returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def outputs(result: Any) -> list[Tensor]:
    """All tensors in what a model returned: a tensor, or tuples, lists, dicts and dataclasses of them.

    >>> import torch
    >>> [t.shape[0] for t in outputs({"out": torch.ones(1), "aux": (torch.ones(2), None)})]
    [1, 2]
    """
    return list(_tensors(result))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to every tensor in it, through tuples and lists.

    >>> import torch
    >>> map_tensors((torch.ones(1), [torch.zeros(1), 2]), lambda t: t + 1)
    (tensor([2.]), [tensor([1.]), 2])
    """
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(map_tensors(item, change) for item in value) if isinstance(value, (tuple, list)) else value


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, (tuple, list)):
        for value in result:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for item in dataclasses.fields(result):
            yield from _tensors(getattr(result, item.name))
