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
    candidates = [Settings(rate) for rate in rates]
    ranked = sorted(candidates, key=lambda settings: -score(settings, first))
    best = max(ranked[:2], key=lambda settings: statistics.fmean(score(settings, seed) for seed in seeds))
    kept = {}
    for name, value in CHANGES.items():
        changed = replace(best, **{name: value})
        if score(changed, first) > score(best, first) and (
            score(changed, first) + score(changed, second) > score(best, first) + score(best, second)
        ):
            kept[name] = value
    return replace(best, **kept)


def grid(rates: Sequence[float] = RATES, seeds: Sequence[int] = SEEDS) -> list[tuple[Settings, int]]:
    """Every run that :func:`choose` may ask for, for where it costs nothing to make them all."""
    plain = [Settings(rate) for rate in rates]
    changed = [replace(settings, **{name: value}) for settings in plain for name, value in CHANGES.items()]
    return [(settings, seed) for settings in (*plain, *changed) for seed in seeds]


def at_edge(settings: Settings, rates: Sequence[float] = RATES) -> bool:
    """Whether a better rate may lie beyond the grid."""
    return settings.rate in (min(rates), max(rates))
