"""How the protocol chooses the settings of an arm: which run comes next, until there is a choice."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.evidence.train import Settings

RATES = (0.002, 0.005, 0.012, 0.03)
SEEDS = (1000, 1001)  # no final run has them

#: What is tried alone at the best rate.
CHANGES = {"distill": 0.0, "norm_scale": 1.0}

Score = Callable[[Settings, int], float]  # validation accuracy of a run with these settings and this seed


def choose(score: Score, rates: Sequence[float] = RATES, seeds: tuple[int, int] = SEEDS) -> Settings:
    """The protocol's three steps; ``score`` makes a run, or looks it up.

    >>> choose(lambda settings, seed: -abs(settings.rate - 0.01) + settings.distill)
    Settings(rate=0.012, distill=0.5, norm_scale=0.1)
    """
    first, second = seeds
    best = max(
        _best_two(score, rates, first), key=lambda settings: statistics.fmean(score(settings, seed) for seed in seeds)
    )
    kept = {}
    for name, value in CHANGES.items():
        changed = replace(best, **{name: value})
        if score(changed, first) > score(best, first) and (
            score(changed, first) + score(changed, second) > score(best, first) + score(best, second)
        ):
            kept[name] = value
    return replace(best, **kept)


def first_round(rates: Sequence[float] = RATES, seeds: Sequence[int] = SEEDS) -> list[tuple[Settings, int]]:
    """Runs that :func:`choose` asks for, and some that it may ask for, to be made at the same time."""
    return [(Settings(rate), seed) for rate in rates for seed in seeds]


def second_round(
    score: Score, rates: Sequence[float] = RATES, seeds: tuple[int, int] = SEEDS
) -> list[tuple[Settings, int]]:
    """The same after the first round: the changes of the two best rates, as many runs as before.

    A step that is compiled for a number of runs serves for both rounds, and for eight final seeds.
    """
    best = _best_two(score, rates, seeds[0])
    changed = [replace(settings, **{name: value}) for settings in best for name, value in CHANGES.items()]
    return [(settings, seed) for settings in changed for seed in seeds]


def _best_two(score: Score, rates: Sequence[float], seed: int) -> list[Settings]:
    return sorted((Settings(rate) for rate in rates), key=lambda settings: -score(settings, seed))[:2]


def at_edge(settings: Settings, rates: Sequence[float] = RATES) -> bool:
    """Whether a better rate may lie beyond the grid."""
    return settings.rate in (min(rates), max(rates))
