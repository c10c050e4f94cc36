"""ILM Norm as one autograd node with its gradient by hand: eager mode, where every small operation counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.backward import eager_backward
from ilmconvert.nn.composed import composed
from ilmconvert.nn.forward import Statistics, eager_forward


def can_fuse(x: Tensor, t: Tensors) -> bool:
    """Whether nothing but plain autograd looks at the operations: no compiler, transform, mode or subclass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or type(x) not in (Tensor, torch.nn.Parameter)
        # The gradient by hand leaves out the reference values, which are frozen unless somebody thaws them.
        or (t.ref_mean is not None and t.ref_mean.requires_grad)
        or (t.ref_std is not None and t.ref_std.requires_grad)
    )


def fused(x: Tensor, t: Tensors, s: Settings) -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` for checked arguments that :func:`can_fuse`."""
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, *t)):
        result: Tensor = _Fused.apply(s, x, *t)
        return result
    return eager_forward(x, t, s)[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Settings, x: Tensor, *tensors: Tensor | None) -> Tensor:
        y, scale, stats = eager_forward(x, Tensors(*tensors), s, keep=True)
        ctx.settings = s
        ctx.save_for_backward(x, *tensors, scale, *stats)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Unpacked once: activation checkpointing computes a saved tensor again each time it is asked for.
        x, *saved = ctx.saved_tensors
        count = len(Tensors._fields)
        t, scale, stats = Tensors(*saved[:count]), saved[count], Statistics(*saved[count + 1 :])
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_differentiable_backward(grad, x, t, ctx.settings, needs)
        return None, *eager_backward(grad, x, t, ctx.settings, scale, stats, needs)


def _differentiable_backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient as a function that can be differentiated again."""
    wanted = [p for p, need in zip((x, *t), needs, strict=True) if need and p is not None]
    grads = iter(torch.autograd.grad(composed(x, t, s), wanted, grad, create_graph=True, allow_unused=True))
    return [next(grads) if need else None for need in needs]
