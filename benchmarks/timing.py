"""Times that survive a busy machine: the candidates take turns, and the median of many turns counts.

On a CUDA device a turn is many calls and one wait at its end, long enough for the device to keep its clock and for the
wait not to count; :func:`captured` makes one of a CUDA graph, which takes the time of Python's side away.
"""

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
    device: str = "cpu",
    *,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """Calls every candidate once a round, after a round that isn't counted; medians over the rounds.

    A load that comes and goes then falls on all candidates alike. ``before[name]`` runs ahead of each turn of
    that candidate, off the clock. Results are dropped off the clock too, and the garbage collector runs
    between turns only, over what is new. On a CUDA ``device`` a turn is as many calls as take ``TURN`` seconds.

    Raises:
        ValueError: ``repeats`` is below 1.

    >>> list(interleaved({"nothing": lambda: None}, repeats=1))
    ['nothing']
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    prepare = before or {}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    calls = _calls_of_a_turn(candidates, device)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name, candidate in candidates.items():
                if name in prepare:
                    prepare[name]()
                elapsed = _one_turn(candidate, calls[name], device)
                if turn > 0:
                    seconds[name].append(elapsed)
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
    return {name: Timing(statistics.median(taken), min(taken), max(taken)) for name, taken in seconds.items()}


TURN, MOST_CALLS = 0.01, 100


def _calls_of_a_turn(candidates: Mapping[str, Callable[[], object]], device: str) -> dict[str, int]:
    """One on a CPU; on a CUDA device as many as fill a turn, after calls that compile and choose kernels."""
    if not device.startswith("cuda"):
        return dict.fromkeys(candidates, 1)
    for candidate in candidates.values():
        _one_turn(candidate, 3, device)
    taken = {name: _one_turn(candidate, 1, device) for name, candidate in candidates.items()}
    return {name: min(MOST_CALLS, max(1, round(TURN / seconds))) for name, seconds in taken.items()}


def _one_turn(candidate: Callable[[], object], calls: int, device: str) -> float:
    """Seconds of one call."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(calls):
        result = candidate()
    finish(device)
    elapsed = time.perf_counter() - start
    del result
    return elapsed / calls


@dataclass(frozen=True)
class Captured:
    """``turn`` as a CUDA graph: its kernels, started by one call.

    What ``turn`` refers to, an optimizer's state for one, is at fixed places of the device's memory, and is kept for as
    long as the graph. Gradients that it accumulates have to be set to None in it, as for any capture.
    """

    turn: Callable[[], object]
    graph: torch.cuda.CUDAGraph

    def __call__(self) -> None:
        self.graph.replay()


def captured(turn: Callable[[], object]) -> Captured:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            turn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        turn()
    return Captured(turn, graph)


def finish(device: str) -> None:
    """Wait for what a CUDA device still computes, so that it counts as part of the turn that asked for it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
