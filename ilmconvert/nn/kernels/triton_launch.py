"""ILM Norm by Triton kernels: three launches forward, five backward. What a kernel is told, and how it is started.

They keep ``x`` and tensors of (N, C) and smaller, look at no value on the host, and add in the same order every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.kernels import triton_backward as backward_kernels
from ilmconvert.nn.kernels import triton_forward as forward_kernels
from ilmconvert.nn.kernels.triton_schedule import Schedule, power, schedule_of


def launch(schedule: Schedule, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Start ``kernel`` with ``args`` and what is compiled in, on the device at hand.

    Triton finds the compiled kernel by looking at every argument, which takes longer than a small kernel does. Under
    one schedule that is always the same one: from the second time on it is started itself.
    """
    ready = None if schedule.ready is None else schedule.ready.get(kernel.__name__)
    if ready is not None:
        start, values = ready
        start(*args, *values)
        return
    compiled = kernel[grid](*args, **constants)
    if schedule.ready is not None and compiled is not None:
        values = tuple(constants[name] for name in kernel.arg_names if name in constants)
        schedule.ready[kernel.__name__] = compiled[(*grid, 1, 1)[:3]], values


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
    """:func:`ilmconvert.nn.ilm_norm` of an ``x`` that is :func:`in_order` and suits the kernels, then an activation.

    Returns:
        The output, and what the backward pass wants to know of the samples.
    """
    schedule = schedule_of(x, t, s, activation)
    n, c, p, groups, keys = schedule.samples, schedule.channels, schedule.positions, s.num_groups, s.num_key_groups
    stats = x.new_empty(_floats_of_samples(n, s, schedule.width), dtype=torch.float32)
    moments = x.new_empty(2 * n * c * schedule.parts, dtype=torch.float32)
    flags, strides = _flags(t, s), (c, p, schedule.sc, schedule.sp)
    launch(
        schedule, forward_kernels.moments_kernel, (schedule.rows, schedule.parts),
        x, moments, *strides, schedule.chunk, schedule.parts, n, **schedule.tile,
    )  # fmt: skip
    launch(
        schedule, forward_kernels.statistics_kernel, (n,),
        moments, t.encoder, t.weight_decoder, t.bias_decoder, stats,
        c, p, schedule.chunk, schedule.parts, groups, keys, schedule.width, n, float(s.eps), *schedule.factors,
        META=flags[1], **schedule.merging,
    )  # fmt: skip
    y = torch.empty_like(x)
    launch(
        schedule, forward_kernels.apply_kernel, (schedule.rows, schedule.pieces),
        x, y, _of_channels(t), stats, *strides, schedule.piece, n, groups, keys, float(s.restore_bound or 1),
        FLAGS=flags, ACT=activation, **schedule.tile,
    )  # fmt: skip
    return y, stats


def backward(
    grad: Tensor, x: Tensor, t: Tensors, s: Settings, stats: Tensor, needs: Sequence[bool], activation: str = "none"
) -> list[Tensor | None]:
    """The gradients of ``x`` and of ``t``'s tensors, None where ``needs`` doesn't ask for one."""
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    schedule, flags, of_channels = schedule_of(x, t, s, activation, grad), _flags(t, s), _of_channels(t)
    n, c, p, groups, keys = schedule.samples, schedule.channels, schedule.positions, s.num_groups, s.num_key_groups
    sums, by_channel = (x.new_empty(2 * n * c * parts, dtype=torch.float32) for parts in (schedule.parts, 1))
    by_sample = torch.empty_like(stats)
    strides, bound = (c, p, schedule.sc, schedule.sp), float(s.restore_bound or 1)
    launch(
        schedule, backward_kernels.sums_kernel, (schedule.rows, schedule.parts),
        x, grad, sums, of_channels, stats, *strides, schedule.chunk, schedule.parts, n, groups, keys, bound,
        FLAGS=flags, ACT=activation, **schedule.tile,
    )  # fmt: skip
    launch(
        schedule, backward_kernels.small_kernel, (n,),
        sums, of_channels, stats, t.encoder, t.weight_decoder, t.bias_decoder, by_channel, by_sample,
        c, p, schedule.parts, groups, keys, schedule.width, n, bound, *schedule.factors,
        FLAGS=flags, BS=power(schedule.parts), **schedule.samplewise,
    )  # fmt: skip
    asked = [need and tensor is not None for need, tensor in zip(needs, (x, *t), strict=True)]
    grads = Tensors(*(None if p is None or i > 6 else torch.empty_like(p) for i, p in enumerate(t)))
    if any(asked[i] for i in (1, 2, 6, 7)):
        d = (grads.weight, grads.bias, grads.restore_weight, grads.restore_bias)
        launch(
            schedule, backward_kernels.channel_gradients_kernel, (-(-c // 32),),
            by_channel, of_channels, stats, *d, c, groups, n, bound, FLAGS=flags, BC=32, BN=min(power(n), 32),
        )  # fmt: skip
    if any(asked[3:6]):
        _meta_gradients(schedule, stats, by_sample, grads, s)
    d_x = None
    if needs[0]:
        d_x = torch.empty_like(x)
        launch(
            schedule, backward_kernels.combine_kernel, (schedule.rows, schedule.pieces),
            x, grad, d_x, of_channels, stats, by_sample, *strides, schedule.piece, n, groups, keys, bound,
            FLAGS=flags, ACT=activation, **schedule.tile,
        )  # fmt: skip
    return [g if need else None for g, need in zip((d_x, *grads), needs, strict=True)]


def _meta_gradients(schedule: Schedule, stats: Tensor, by_sample: Tensor, grads: Tensors, s: Settings) -> None:
    keys, units = s.num_key_groups, power(schedule.width)
    some = max(1, min(power(schedule.samples), 2048 // units))
    block = max(1, min(power(keys), 2048 // (units * some)))
    launch(
        schedule, backward_kernels.meta_gradients_kernel, (-(-keys // block),),
        stats, by_sample, grads.encoder, grads.weight_decoder, grads.bias_decoder,
        s.num_groups, keys, schedule.width, schedule.samples, BK=block, BR=units, BN=some,
    )  # fmt: skip
