"""ILM Norm by Triton kernels: three launches forward, five backward. What a kernel is told, and how it is started.

They keep ``x`` and tensors of (N, C) and smaller, look at no value on the host, and add in the same order every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.kernels import triton_backward as backward_kernels
from ilmconvert.nn.kernels import triton_forward as forward_kernels

#: Elements that a program holds at a time: of the large tensors, and of those of (N, C).
_TILE, _SMALL_TILE = 1024, 4096
#: The largest group, of which one program holds a row; and its channels' parts, where positions are divided.
_LARGEST_GROUP, _LARGEST_ROW = 16384, 4096
_WARPS = 8  # of the programs that work on a sample each
# Programs that keep a large GPU busy; with fewer samples and channels, positions are divided.
_PROGRAMS = 1024
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Plan(NamedTuple):
    """Sizes and strides of one call, and the blocks in which the kernels work."""

    samples: int
    channels: int
    positions: int
    sc: int
    sp: int
    block_channels: int
    block_positions: int
    chunk: int
    parts: int


class Saved(NamedTuple):
    """Of the forward pass for the backward pass; see :func:`ilmconvert.nn.kernels.triton_forward.statistics_kernel`."""

    mu: Tensor
    sigma: Tensor
    m: Tensor
    v: Tensor
    codes: Tensor
    gate: Tensor
    offset: Tensor


def power(n: int) -> int:
    """The smallest power of two that isn't smaller."""
    return 1 << max(n - 1, 0).bit_length()


def suits(x: Tensor, s: Settings) -> bool:
    """Whether the kernels take ``x``: its type, and that no group is longer than a program's row."""
    size = max(x.shape[1] // s.num_groups, x.shape[1] // s.num_key_groups)
    return x.dtype in _TYPES and 0 < x.numel() < len(x) << 31 and size <= _LARGEST_GROUP


def make_plan(x: Tensor, s: Settings) -> Plan:
    """For a contiguous or channels_last ``x``."""
    samples, channels = x.shape[:2]
    positions = prod(x.shape[2:])
    inner = positions == 1 or not x.is_contiguous()
    if inner:
        block_channels = min(power(channels), 64)
        block_positions = min(power(positions), _TILE // block_channels)
    else:
        block_positions = min(power(positions), _TILE)
        block_channels = min(power(channels), _TILE // block_positions, 32)
    programs = samples * -(-channels // block_channels)
    size = max(channels // s.num_groups, channels // s.num_key_groups)
    wanted = max(
        1, min(-(-_PROGRAMS // programs), max(1, _LARGEST_ROW // size), -(-positions // (4 * block_positions)))
    )
    chunk = -(-positions // (wanted * block_positions)) * block_positions
    strides = (1, channels) if inner else (positions, 1)
    return Plan(samples, channels, positions, *strides, block_channels, block_positions, chunk, -(-positions // chunk))


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **constants: Any) -> None:
    """Start ``kernel``, whose first argument is ``x``, on the device of ``x``."""
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        kernel[grid](x, *args, **constants)


def in_order(x: Tensor) -> Tensor:
    """``x`` itself if it is contiguous or channels_last, or a contiguous copy."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.is_contiguous() or (x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])):
        return x
    return x.contiguous()


def _flags(t: Tensors, s: Settings) -> tuple[bool, bool, bool, bool]:
    restores = t.restore_weight is not None
    return t.weight is not None, t.encoder is not None, restores, restores and s.restore_bound is not None


def _of_channels(t: Tensors) -> tuple[Tensor | None, ...]:
    return t.weight, t.bias, t.restore_weight, t.restore_bias, t.ref_mean, t.ref_std


def _factors(x: Tensor, s: Settings) -> tuple[float, float]:
    """From the biased variances of both partitions to those asked for."""
    counts = (prod(x.shape[1:]) / groups for groups in (s.num_groups, s.num_key_groups))
    first, second = (n / (n - s.correction) if n > s.correction else 1.0 for n in counts)
    return first, second


def _blocks(plan: Plan, s: Settings, width: int) -> dict[str, int]:
    """The blocks of both kernels for (N, C): groups and key groups at a time, their rows, and the encoder's units."""
    row, key_row = (power(plan.channels // n * plan.parts) for n in (s.num_groups, s.num_key_groups))
    units = power(width)
    groups = max(1, min(_SMALL_TILE // row, power(s.num_groups)))
    keys = max(1, min(_SMALL_TILE // max(key_row, units), power(s.num_key_groups)))
    return {"BG": groups, "BE": row, "BK": keys, "BF": key_row, "BR": units, "num_warps": _WARPS}


def forward(x: Tensor, t: Tensors, s: Settings, activation: str = "none") -> tuple[Tensor, Saved]:
    """:func:`ilmconvert.nn.ilm_norm` of an ``x`` that is :func:`in_order` and :func:`suits`, then an activation."""
    plan, width = make_plan(x, s), 1 if t.encoder is None else t.encoder.shape[0]
    n, c, p = plan.samples, plan.channels, plan.positions
    sizes = ((n, s.num_groups),) * 2 + ((n, s.num_key_groups),) * 2 + ((2, n, width),) + ((n, s.num_key_groups),) * 2
    saved = Saved(*(x.new_empty(size, dtype=torch.float32) for size in sizes))
    means, squares = x.new_empty((2, n, c, plan.parts), dtype=torch.float32)
    rows = n * -(-c // plan.block_channels)
    tile = {"BC": plan.block_channels, "BP": plan.block_positions}
    strides = (c, p, plan.sc, plan.sp)
    launch(
        forward_kernels.moments_kernel, (rows, plan.parts), x, means, squares, *strides, plan.chunk, plan.parts, **tile
    )
    flags = _flags(t, s)
    launch(
        forward_kernels.statistics_kernel, (n,),
        means, squares, t.encoder, t.weight_decoder, t.bias_decoder, *saved,
        c, p, plan.chunk, plan.parts, s.num_groups, s.num_key_groups, width, n, s.eps, *_factors(x, s),
        META=flags[1], **_blocks(plan, s, width),
    )  # fmt: skip
    y = torch.empty_like(x)
    stats = (saved.mu, saved.sigma, saved.gate, saved.offset)
    launch(
        forward_kernels.apply_kernel, (rows, -(-p // plan.block_positions)),
        x, y, _of_channels(t), stats, *strides, s.num_groups, s.num_key_groups, s.restore_bound or 1.0,
        FLAGS=flags, ACT=activation, **tile,
    )  # fmt: skip
    return y, saved


def backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, saved: Saved, needs: Sequence[bool], activation: str = "none"
) -> list[Tensor | None]:
    """The gradients of ``x`` and of ``t``'s tensors, None where ``needs`` doesn't ask for one."""
    plan, width = make_plan(x, s), 1 if t.encoder is None else t.encoder.shape[0]
    n, c, p, groups, keys = plan.samples, plan.channels, plan.positions, s.num_groups, s.num_key_groups
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    products, sums = x.new_empty((2, n, c, plan.parts), dtype=torch.float32)
    by_group, by_key, d_gates, d_codes = (
        x.new_empty(size, dtype=torch.float32) for size in ((2, n, groups), (2, n, keys), (2, n, keys), (2, n, width))
    )
    flags, of_channels = _flags(t, s), _of_channels(t)
    stats = (saved.mu, saved.sigma, saved.gate, saved.offset)
    rows, strides, bound = n * -(-c // plan.block_channels), (c, p, plan.sc, plan.sp), s.restore_bound or 1.0
    tile = {"FLAGS": flags, "ACT": activation, "BC": plan.block_channels, "BP": plan.block_positions}
    launch(
        backward_kernels.sums_kernel, (rows, plan.parts),
        x, grad, products, sums, of_channels, stats, *strides, plan.chunk, plan.parts, groups, keys, bound, **tile,
    )  # fmt: skip
    launch(
        backward_kernels.small_kernel, (n,),
        products, sums, of_channels, stats, t.encoder, t.weight_decoder, t.bias_decoder, saved.codes,
        by_group, by_key, d_gates, d_codes, c, p, plan.parts, groups, keys, width, n, bound, *_factors(x, s),
        FLAGS=flags, **_blocks(plan, s, width),
    )  # fmt: skip
    grads = Tensors(*(None if p is None or i > 6 else torch.empty_like(p) for i, p in enumerate(t)))
    asked = [need and tensor is not None for need, tensor in zip(needs, (x, *t), strict=True)]
    if any(asked[i] for i in (1, 2, 6, 7)):
        d = (grads.weight, grads.bias, grads.restore_weight, grads.restore_bias)
        launch(
            backward_kernels.channel_gradients_kernel, (-(-c // 128),),
            products, sums, of_channels, stats, *d, c, plan.parts, groups, n, bound, FLAGS=flags, BC=128,
        )  # fmt: skip
    if any(asked[3:6]):
        d_meta = (grads.encoder, grads.weight_decoder, grads.bias_decoder)
        block = max(1, min(power(keys), 1024 // power(width)))
        launch(
            backward_kernels.meta_gradients_kernel, (-(-keys // block),),
            saved.m, saved.v, saved.codes, d_gates, d_codes, *d_meta, keys, width, n, BK=block, BR=power(width),
        )  # fmt: skip
    d_x = None
    if needs[0]:
        d_x = torch.empty_like(x)
        launch(
            backward_kernels.combine_kernel, (rows, -(-p // plan.block_positions)),
            x, grad, d_x, of_channels, stats, saved.m, by_group, by_key, *strides, groups, keys, n, bound, **tile,
        )  # fmt: skip
    return [g if need else None for g, need in zip((d_x, *grads), needs, strict=True)]
