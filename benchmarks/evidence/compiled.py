"""The forward and backward pass of stacked runs as fused kernels, for :mod:`benchmarks.evidence.together`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch._inductor
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ilmconvert.errors import ILMConvertError

Learn = Callable[..., tuple[Tensor, Tensor]]
_COMPILED: dict[object, Learn] = {}
#: Of a compiled step's loss and gradient. Rounding puts an activation on the other side of its function's corner.
_TOLERANCE = (1e-4, 0.05)


def compile_learning(learn: Learn, described: str, seen: Sequence[Tensor]) -> Learn:
    """``learn`` as fused kernels, the same ones for all arms whose networks are described in the same way.

    The forward and the backward pass are traced to plain operations first: hooks and ``vmap`` are gone then.

    Args:
        learn: the losses (R,) and gradients (R, P) of R runs, from ``seen``.
        described: see :func:`description`.

    Raises:
        ILMConvertError: the compiled step doesn't give what the plain one gives.
    """
    key = described, tuple(tensor.shape for tensor in seen)
    if key not in _COMPILED:
        traced = make_fx(learn)(*_copied(seen))  # BatchNorm in training changes its statistics
        if any(node.op == "get_attr" for node in traced.graph.nodes):
            raise ILMConvertError("this arm's networks hold tensors beside parameters and buffers; omit --compile")
        _COMPILED[key] = torch._inductor.compile(traced, _copied(seen))
    expected, found = learn(*_copied(seen)), _COMPILED[key](*_copied(seen))
    loss, gradient = (((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
    if not (loss <= _TOLERANCE[0] and gradient <= _TOLERANCE[1]):  # also where one isn't a number
        raise ILMConvertError(
            f"the compiled step is off by {loss:.1e} of the loss and {gradient:.1e} of the gradient; omit --compile"
        )
    return _COMPILED[key]


def description(network: nn.Module) -> str:
    """What a network does, without its tensors: layers and their settings."""
    simple = (bool, int, float, str, tuple, type(None))
    layers = ((name, layer, vars(layer)) for name, layer in network.named_modules())
    return repr([(n, type(m), {k: v for k, v in found.items() if isinstance(v, simple)}) for n, m, found in layers])


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
