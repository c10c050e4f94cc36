"""Build a module without spending time on random numbers that are overwritten right away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.bernoulli_,
        torch.Tensor.exponential_,
        torch.Tensor.log_normal_,
        torch.Tensor.random_,
        # truncated normals are scaled and clamped uniform numbers: on uninitialised memory all that is wasted time
        torch.Tensor.erfinv_,
        torch.Tensor.mul_,
        torch.Tensor.add_,
        torch.Tensor.clamp_,
    }
)


class _SkipRandomFills(TorchFunctionMode):
    """Turns in-place random fills of parameters into no-ops; every other call runs as usual."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        # Only parameters: a random buffer that isn't persistent would never be overwritten from a file.
        if isinstance(target, nn.Parameter) and (func in _FILLS or _is_initializer(func)):
            return target
        return func(*args, **kwargs)


def _is_initializer(func: Callable[..., Any]) -> bool:
    # Some of these come here themselves, and what they call doesn't: the mode is off inside of them.
    return getattr(func, "__module__", None) == "torch.nn.init"


@contextmanager
def skip_init() -> Iterator[None]:
    """Skip the random initialisation of parameters inside the block.

    Parameters hold arbitrary memory afterwards, so the caller has to overwrite each of them. Buffers, also those
    that a state dict leaves out, come out as in a plain build (which the meta device can't give).

    >>> with skip_init():
    ...     layer = torch.nn.Linear(3, 2)
    >>> layer.weight.shape
    torch.Size([2, 3])
    """
    with _SkipRandomFills():
        yield
