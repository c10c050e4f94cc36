"""How the Triton kernels share out the work of one call: blocks, programs, and what Triton has compiled for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors

#: Elements of the large tensors that a program holds at a time, and its warps: usually, and where there is much to do.
_TILE, _LARGE_TILE = (1024, 4), (4096, 8)
#: The same of the kernels that work on a sample, whose tensors are of (N, C).
_SMALL_TILE, _SMALL_WARPS = 4096, 8
#: The largest group, of which one program holds a row; its channels' parts, where positions are divided; a sample's.
_LARGEST_GROUP, _LARGEST_ROW, _MOST_PARTS = 16384, 4096, 4096
# Programs that keep a large GPU busy; with fewer samples and channels, positions are divided.
_PROGRAMS = 1056
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Schedule(NamedTuple):
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


def schedule_of(x: Tensor, t: Tensors, s: Settings, activation: str, *others: Tensor) -> Schedule:
    """For a contiguous or channels_last ``x``, and ``others`` of its type that the kernels will read."""
    samples, channels = x.shape[:2]
    positions = prod(x.shape[2:])
    width = 1 if t.encoder is None else t.encoder.shape[0]
    inner = positions == 1 or not x.is_contiguous()
    kind = compiled_for((x, *others, *t)) if x.is_cuda else None
    if kind is not None:
        kind = (*kind, activation, s.restore_bound is None, x.get_device())
    return _schedule(samples, channels, positions, inner, s.num_groups, s.num_key_groups, width, s.correction, kind)


def compiled_for(tensors: Iterable[Tensor | None]) -> tuple[Any, ...] | None:
    """What Triton compiles for: the types, if all tensors lie at multiples of 16 bytes, as nearly all do."""
    pointers = 0
    kinds: list[torch.dtype | None] = []
    for t in tensors:
        pointers |= 0 if t is None else t.data_ptr()
        kinds.append(None if t is None else t.dtype)
    return None if pointers % 16 else tuple(kinds)


@lru_cache(maxsize=4096)
def _schedule(
    samples: int,
    channels: int,
    positions: int,
    inner: bool,
    groups: int,
    key_groups: int,
    width: int,
    correction: int,
    kind: tuple[Any, ...] | None,
) -> Schedule:
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
    return Schedule(
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
