"""ILM Norm as one autograd node with its gradient by hand: eager mode, where every small operation counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.backward import eager_backward
from ilmconvert.nn.composed import composed
from ilmconvert.nn.forward import Statistics, eager_forward

#: What may follow the layer in the same kernel.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
_CONSTANTS = Tensors._fields[-2:]


def can_fuse(x: Tensor, t: Tensors) -> bool:
    """Whether nothing but plain autograd looks at the operations: no compiler, transform, mode or subclass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or type(x) not in (Tensor, torch.nn.Parameter)
        # The gradient by hand leaves out the reference values, which have requires_grad=False by default.
        or (t.ref_mean is not None and t.ref_mean.requires_grad)
        or (t.ref_std is not None and t.ref_std.requires_grad)
    )


def fused(x: Tensor, t: Tensors, s: Settings, activation: str = "none") -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` for checked arguments that :func:`can_fuse`."""
    kernels = triton_kernels(x, s)
    if kernels is not None:
        with kernels.on_device_of(x):
            return _fused_by_triton(kernels, kernels.in_order(x), t, s, activation)
    if _wants_gradient(x, t):
        y: Tensor = _Fused.apply(s, activation, x, *t)
    else:
        y = eager_forward(x, t, s)[0]
    return ACTIVATIONS[activation](y)


def _fused_by_triton(kernels: ModuleType, x: Tensor, t: Tensors, s: Settings, activation: str) -> Tensor:
    if _wants_gradient(x, t):
        y: Tensor = _FusedByTriton.apply(s, activation, x, *t)
    else:
        y = kernels.forward(x, t, s, activation)[0]
    return y


def _wants_gradient(x: Tensor, t: Tensors) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in t))


def triton_kernels(x: Tensor, s: Settings) -> ModuleType | None:
    """The module of the Triton kernels where they are there and take ``x``."""
    if not x.is_cuda or not _has_triton() or not _is_recent(x.get_device()):
        return None
    from ilmconvert.nn.kernels import triton_launch, triton_schedule

    return triton_launch if triton_schedule.suits(x, s) else None


@cache
def _has_triton() -> bool:
    try:
        import triton
    except ImportError:
        return False
    # Tuples of arguments came with 3.3.
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)


@cache
def _is_recent(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Settings, _: str, x: Tensor, *tensors: Tensor | None) -> Tensor:
        y, scale, stats = eager_forward(x, Tensors(*tensors), s, keep=True)
        ctx.settings = s
        ctx.save_for_backward(x, *_unversioned(tensors), scale, *stats)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Unpacked once: activation checkpointing computes a saved tensor again each time it is asked for.
        x, *saved = ctx.saved_tensors
        count = len(Tensors._fields)
        t, scale, stats = Tensors(*saved[:count]), saved[count], Statistics(*saved[count + 1 :])
        needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *_differentiable_backward(grad, x, t, ctx.settings, needs)
        return None, None, *eager_backward(grad, x, t, ctx.settings, scale, stats, needs)


class _FusedByTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Settings, activation: str, x: Tensor, *tensors: Tensor | None) -> Tensor:
        from ilmconvert.nn.kernels import triton_launch

        y, stats = triton_launch.forward(x, Tensors(*tensors), s, activation)
        ctx.settings, ctx.activation = s, activation
        ctx.save_for_backward(x, *_unversioned(tensors), stats)
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from ilmconvert.nn.kernels import triton_launch

        x, *tensors, stats = ctx.saved_tensors
        t = Tensors(*tensors)
        needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *_differentiable_backward(grad, x, t, ctx.settings, needs, ctx.activation)
        with triton_launch.on_device_of(x):
            return None, None, *triton_launch.backward(grad, x, t, ctx.settings, stats, needs, ctx.activation)


def _unversioned(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """For save_for_backward: constants that DDP broadcasts before each forward pass, without a change, may be newer."""
    trained, constants = tensors[: -len(_CONSTANTS)], tensors[-len(_CONSTANTS) :]
    return *trained, *(None if t is None else t.data for t in constants)


def _differentiable_backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, needs: Sequence[bool], activation: str = "none"
) -> list[Tensor | None]:
    """The gradient as a function that can be differentiated again."""
    wanted = [p for p, need in zip((x, *t), needs, strict=True) if need and p is not None]
    y = ACTIVATIONS[activation](composed(x, t, s))
    grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return [next(grads) if need else None for need in needs]
