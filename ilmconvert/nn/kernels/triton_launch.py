"""ILM Norm by Triton kernels: three launches forward, five backward. What a kernel is told, and how it is started.

They keep ``x`` and tensors of (N, C) and smaller, look at no value on the host, and add in the same order every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.kernels import triton_backward as backward_kernels
from ilmconvert.nn.kernels import triton_forward as forward_kernels

#: Elements of the large tensors that a program holds at a time, and its warps: usually, and where there is much to do.
_TILE, _LARGE_TILE = (1024, 4), (4096, 8)
#: The same of the kernels that work on a sample, whose tensors are of (N, C).
_SMALL_TILE, _SMALL_WARPS = 4096, 8
#: The largest group, of which one program holds a row; its channels' parts, where positions are divided; a sample's.
_LARGEST_GROUP, _LARGEST_ROW, _MOST_PARTS = 16384, 4096, 4096
# Programs that keep a large GPU busy; with fewer samples and channels, positions are divided.
_PROGRAMS = 1056
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Plan(NamedTuple):
    """Sizes and strides of one call, and the blocks in which the kernels work.

    Attributes:
        rows: programs that share a tensor's samples and channels.
        chunk, parts: positions of a program that sums over them, and how many such programs a row has.
        piece, pieces: the same where nothing is summed.
        tile: blocks and warps of the kernels that work on the large tensors.
        merging, samplewise: those of the kernels that work on a sample, forward and backward.
        factors: from the biased variances of both partitions to those asked for.
        ready: kernels that were started with arguments of this kind, by name, with their compiled-in constants. None
            where Triton has to look at the arguments each time.
    """

    samples: int
    channels: int
    positions: int
    width: int
    sc: int
    sp: int
    rows: int
    chunk: int
    parts: int
    piece: int
    pieces: int
    tile: dict[str, int]
    merging: dict[str, int]
    samplewise: dict[str, int]
    factors: tuple[float, float]
    ready: dict[str, tuple[Any, tuple[Any, ...]]] | None


def power(n: int) -> int:
    """The smallest power of two that isn't smaller."""
    return 1 << max(n - 1, 0).bit_length()


def suits(x: Tensor, s: Settings) -> bool:
    """Whether the kernels take ``x``: its type, and that no group is longer than a program's row."""
    size = max(x.shape[1] // s.num_groups, x.shape[1] // s.num_key_groups)
    return x.dtype in _TYPES and 0 < x.numel() < len(x) << 31 and size <= _LARGEST_GROUP


def make_plan(x: Tensor, t: Tensors, s: Settings, activation: str, *others: Tensor) -> Plan:
    """For a contiguous or channels_last ``x``, and ``others`` of its type that the kernels will read."""
    samples, channels = x.shape[:2]
    positions = prod(x.shape[2:])
    width = 1 if t.encoder is None else t.encoder.shape[0]
    inner = positions == 1 or not x.is_contiguous()
    kind = kind_of((x, *others, *t)) if x.is_cuda else None
    if kind is not None:
        kind = (*kind, activation, s.restore_bound is None, x.get_device())
    return _plan(samples, channels, positions, inner, s.num_groups, s.num_key_groups, width, s.correction, kind)


def kind_of(tensors: Iterable[Tensor | None]) -> tuple[Any, ...] | None:
    """What Triton compiles for: the types, if all tensors lie at multiples of 16 bytes, as nearly all do."""
    pointers = 0
    kinds: list[torch.dtype | None] = []
    for t in tensors:
        pointers |= 0 if t is None else t.data_ptr()
        kinds.append(None if t is None else t.dtype)
    return None if pointers % 16 else tuple(kinds)


@lru_cache(maxsize=4096)
def _plan(
    samples: int,
    channels: int,
    positions: int,
    inner: bool,
    groups: int,
    key_groups: int,
    width: int,
    correction: int,
    kind: tuple[Any, ...] | None,
) -> Plan:
    """``inner``: whether channels lie side by side."""
    tile, warps = _LARGE_TILE if samples * channels * positions >= _LARGE_TILE[0] * _PROGRAMS else _TILE
    if inner:
        block_channels = min(power(channels), 64)
        block_positions = min(power(positions), tile // block_channels)
    else:
        block_positions = min(power(positions), 512)
        block_channels = min(power(channels), tile // block_positions, 32)
    rows, size = samples * -(-channels // block_channels), max(channels // groups, channels // key_groups)
    steps, wanted = -(-positions // block_positions), -(-_PROGRAMS // rows)
    parts = max(1, min(wanted, _LARGEST_ROW // size, _MOST_PARTS // channels, -(-steps // 4)))
    chunk, piece = (-(-steps // n) * block_positions for n in (parts, min(wanted, steps)))
    parts, pieces = -(-positions // chunk), -(-positions // piece)
    counts = (channels * positions / n for n in (groups, key_groups))
    first, second = (n / (n - correction) if n > correction else 1.0 for n in counts)
    return Plan(
        samples, channels, positions, width, *((1, channels) if inner else (positions, 1)),
        rows, chunk, parts, piece, pieces,
        {"BC": block_channels, "BP": block_positions, "num_warps": warps},
        _blocks(channels // groups * parts, groups, channels // key_groups * parts, key_groups, width, 1),
        _blocks(channels // groups, groups, channels // key_groups, key_groups, width, power(parts)),
        (first, second), None if kind is None else {},
    )  # fmt: skip


def _blocks(row: int, groups: int, key_row: int, key_groups: int, width: int, depth: int) -> dict[str, int]:
    """Rows of groups and of key groups, how many of them are held at a time, and the encoder's units."""
    row, key_row, units = power(row), power(key_row), power(width)
    some = max(1, min(_SMALL_TILE // (row * depth), power(groups)))
    some_keys = max(1, min(_SMALL_TILE // max(key_row * depth, units), power(key_groups)))
    return {"BG": some, "BE": row, "BK": some_keys, "BF": key_row, "BR": units, "num_warps": _SMALL_WARPS}


def launch(plan: Plan, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Start ``kernel`` with ``args`` and what is compiled in, on the device at hand.

    Triton finds the compiled kernel by looking at every argument, which takes longer than a small kernel does. Under
    one plan that is always the same one: from the second time on it is started itself.
    """
    ready = None if plan.ready is None else plan.ready.get(kernel.__name__)
    if ready is not None:
        start, values = ready
        start(*args, *values)
        return
    compiled = kernel[grid](*args, **constants)
    if plan.ready is not None and compiled is not None:
        values = tuple(constants[name] for name in kernel.arg_names if name in constants)
        plan.ready[kernel.__name__] = compiled[(*grid, 1, 1)[:3]], values


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the GPU of ``x`` the current one, where it isn't."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


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


def _floats_of_samples(samples: int, s: Settings, width: int) -> int:
    """How long the vectors are that :mod:`ilmconvert.nn.kernels.triton_common` calls ``stats``."""
    return 2 * samples * (s.num_groups + 2 * s.num_key_groups + width)


def forward(x: Tensor, t: Tensors, s: Settings, activation: str = "none") -> tuple[Tensor, Tensor]:
    """:func:`ilmconvert.nn.ilm_norm` of an ``x`` that is :func:`in_order` and :func:`suits`, then an activation.

    Returns:
        The output, and what the backward pass wants to know of the samples.
    """
    plan = make_plan(x, t, s, activation)
    n, c, p, groups, keys = plan.samples, plan.channels, plan.positions, s.num_groups, s.num_key_groups
    stats = x.new_empty(_floats_of_samples(n, s, plan.width), dtype=torch.float32)
    moments = x.new_empty(2 * n * c * plan.parts, dtype=torch.float32)
    flags, strides = _flags(t, s), (c, p, plan.sc, plan.sp)
    launch(
        plan, forward_kernels.moments_kernel, (plan.rows, plan.parts),
        x, moments, *strides, plan.chunk, plan.parts, n, **plan.tile,
    )  # fmt: skip
    launch(
        plan, forward_kernels.statistics_kernel, (n,),
        moments, t.encoder, t.weight_decoder, t.bias_decoder, stats,
        c, p, plan.chunk, plan.parts, groups, keys, plan.width, n, float(s.eps), *plan.factors,
        META=flags[1], **plan.merging,
    )  # fmt: skip
    y = torch.empty_like(x)
    launch(
        plan, forward_kernels.apply_kernel, (plan.rows, plan.pieces),
        x, y, _of_channels(t), stats, *strides, plan.piece, n, groups, keys, float(s.restore_bound or 1),
        FLAGS=flags, ACT=activation, **plan.tile,
    )  # fmt: skip
    return y, stats


def backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, stats: Tensor, needs: Sequence[bool], activation: str = "none"
) -> list[Tensor | None]:
    """The gradients of ``x`` and of ``t``'s tensors, None where ``needs`` doesn't ask for one."""
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    plan, flags, of_channels = make_plan(x, t, s, activation, grad), _flags(t, s), _of_channels(t)
    n, c, p, groups, keys = plan.samples, plan.channels, plan.positions, s.num_groups, s.num_key_groups
    sums, by_channel = (x.new_empty(2 * n * c * parts, dtype=torch.float32) for parts in (plan.parts, 1))
    by_sample = torch.empty_like(stats)
    strides, bound = (c, p, plan.sc, plan.sp), float(s.restore_bound or 1)
    launch(
        plan, backward_kernels.sums_kernel, (plan.rows, plan.parts),
        x, grad, sums, of_channels, stats, *strides, plan.chunk, plan.parts, n, groups, keys, bound,
        FLAGS=flags, ACT=activation, **plan.tile,
    )  # fmt: skip
    launch(
        plan, backward_kernels.small_kernel, (n,),
        sums, of_channels, stats, t.encoder, t.weight_decoder, t.bias_decoder, by_channel, by_sample,
        c, p, plan.parts, groups, keys, plan.width, n, bound, *plan.factors,
        FLAGS=flags, BS=power(plan.parts), **plan.samplewise,
    )  # fmt: skip
    asked = [need and tensor is not None for need, tensor in zip(needs, (x, *t), strict=True)]
    grads = Tensors(*(None if p is None or i > 6 else torch.empty_like(p) for i, p in enumerate(t)))
    if any(asked[i] for i in (1, 2, 6, 7)):
        d = (grads.weight, grads.bias, grads.restore_weight, grads.restore_bias)
        launch(
            plan, backward_kernels.channel_gradients_kernel, (-(-c // 32),),
            by_channel, of_channels, stats, *d, c, groups, n, bound, FLAGS=flags, BC=32, BN=min(power(n), 32),
        )  # fmt: skip
    if any(asked[3:6]):
        _meta_gradients(plan, stats, by_sample, grads, s)
    d_x = None
    if needs[0]:
        d_x = torch.empty_like(x)
        launch(
            plan, backward_kernels.combine_kernel, (plan.rows, plan.pieces),
            x, grad, d_x, of_channels, stats, by_sample, *strides, plan.piece, n, groups, keys, bound,
            FLAGS=flags, ACT=activation, **plan.tile,
        )  # fmt: skip
    return [g if need else None for g, need in zip((d_x, *grads), needs, strict=True)]


def _meta_gradients(plan: Plan, stats: Tensor, by_sample: Tensor, grads: Tensors, s: Settings) -> None:
    keys, units = s.num_key_groups, power(plan.width)
    some = max(1, min(power(plan.samples), 2048 // units))
    block = max(1, min(power(keys), 2048 // (units * some)))
    launch(
        plan, backward_kernels.meta_gradients_kernel, (-(-keys // block),),
        stats, by_sample, grads.encoder, grads.weight_decoder, grads.bias_decoder,
        s.num_groups, keys, plan.width, plan.samples, BK=block, BR=units, BN=some,
    )  # fmt: skip
