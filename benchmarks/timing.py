"""Times that survive a busy machine: the candidates take turns, and the median of many turns counts."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: the median, the fastest and the slowest turn."""

    median: float
    fastest: float
    slowest: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    *,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """Calls every candidate once a round, after a round that isn't counted; medians over the rounds.

    A load that comes and goes then falls on all candidates alike. ``before[name]`` runs ahead of each turn of
    that candidate, off the clock. Results are dropped off the clock too, and the garbage collector runs
    between turns only.

    Raises:
        ValueError: ``repeats`` is below 1.

    >>> list(interleaved({"nothing": lambda: None}, repeats=1))
    ['nothing']
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    prepare = before or {}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name, candidate in candidates.items():
                if name in prepare:
                    prepare[name]()
                elapsed = _one_turn(candidate)
                if turn > 0:
                    seconds[name].append(elapsed)
    finally:
        if was_enabled:
            gc.enable()
    return {name: Timing(statistics.median(taken), min(taken), max(taken)) for name, taken in seconds.items()}


def _one_turn(candidate: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    result = candidate()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def finish(device: str) -> None:
    """Wait for what a CUDA device still computes, so that it counts as part of the turn that asked for it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
