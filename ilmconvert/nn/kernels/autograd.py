"""Autograd formulas for the two passes over the large tensor; they keep ``x`` and (N, C)-sized tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ilmconvert.nn.kernels import dispatch, formulas


class _Moments(torch.autograd.Function):
    """(N, C, *) to the mean and the biased variance of each channel group, (N, F)."""

    @staticmethod
    def forward(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        return dispatch.moments(x, num_groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.num_groups = inputs
        ctx.save_for_backward(x, output[0])
        ctx.save_for_forward(x, output[0])

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        # Every element of a group moves its mean by 1 / count and its variance by 2 (x - mean) / count.
        count = max(x[:1, : x.shape[1] // ctx.num_groups].numel(), 1)
        scale = grad_var * (2.0 / count)
        shift = grad_mean / count - scale * mean
        scale, shift = (_expand_groups(t, x.shape[1]) for t in (scale, shift))
        apply = formulas.scale_shift if torch.is_grad_enabled() else dispatch.scale_shift
        return apply(x, scale, shift), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, Tensor]:
        x, mean = ctx.saved_tensors
        dims = tuple(range(2, x.dim() + 1))
        grouped = tangent.to(mean.dtype).unflatten(1, (ctx.num_groups, -1))
        product = grouped * x.unflatten(1, (ctx.num_groups, -1))
        tangent_mean = grouped.mean(dims)
        return tangent_mean, 2 * (product.mean(dims) - mean * tangent_mean)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, num_groups: int) -> Any:
        x = x.movedim(in_dims[0], 0)
        mean, var = _Moments.apply(x.flatten(0, 1), num_groups)
        size = x.shape[:2]
        return (mean.unflatten(0, size), var.unflatten(0, size)), (0, 0)


class _ScaleShift(torch.autograd.Function):
    """``x * scale + shift`` with ``x`` (N, C, *) and (N, C) coefficients."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return dispatch.scale_shift(x, scale, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        differentiable = torch.is_grad_enabled()
        sums = formulas.channel_sums if differentiable else dispatch.channel_sums
        grad_scale, grad_shift = sums(grad, x, scale.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            apply = formulas.scale_shift if differentiable else dispatch.scale_shift
            grad_x = apply(grad, scale, torch.zeros_like(scale))
        return grad_x, grad_scale, grad_shift

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, tangent_scale: Tensor, tangent_shift: Tensor) -> Tensor:
        x, scale = ctx.saved_tensors
        scale, tangent_scale, tangent_shift = (
            formulas.per_channel(t, x) for t in (scale, tangent_scale, tangent_shift)
        )
        result: Tensor = (tangent * scale + x * tangent_scale + tangent_shift).to(x.dtype)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        batched = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        ]
        y: Tensor = _ScaleShift.apply(*(t.flatten(0, 1) for t in batched))
        return y.unflatten(0, batched[0].shape[:2]), 0


def _expand_groups(t: Tensor, num_channels: int) -> Tensor:
    """(N, F) to (N, C): each group's value for each of its channels."""
    groups = t.shape[1]
    return t.unsqueeze(2).expand(-1, -1, num_channels // groups).reshape(-1, num_channels)


def _is_traced() -> bool:
    # Compilers and exporters fuse and differentiate the plain formula better than an opaque kernel call.
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Differentiable :func:`ilmconvert.nn.kernels.dispatch.moments`."""
    if _is_traced():
        return formulas.moments(x, num_groups)
    result: tuple[Tensor, Tensor] = _Moments.apply(x, num_groups)
    return result


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Differentiable :func:`ilmconvert.nn.kernels.dispatch.scale_shift`."""
    if _is_traced():
        return formulas.scale_shift(x, scale, shift)
    result: Tensor = _ScaleShift.apply(x, scale, shift)
    return result
