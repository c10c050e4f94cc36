"""Paired differences with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.runs import FINAL, Run
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS

CLEAN = "clean"
Measured = Callable[[Run], float]
#: What a final run is judged on, in the order of the tables.
COLUMNS = (CLEAN, *(f"{name} {severity}" for name in SHIFTS for severity in SEVERITIES))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; ``error`` is its standard error and ``half`` half of the 95 % interval; None of one seed."""

    mean: float
    error: float | None
    half: float | None
    count: int

    @property
    def in_errors(self) -> float | None:
        return self.mean / self.error if self.error else None

    def text(self, sign: str = "") -> str:
        """
        >>> estimate([0.1, 0.2, 0.3]).text("+")
        '+0.200 ± 0.248'
        """
        return f"{self.mean:{sign}.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard error and half of Student's 95 % interval."""
    from scipy.stats import t  # type: ignore[import-untyped]

    count = len(values)
    if count < 2:
        return Estimate(statistics.fmean(values), None, None, count)
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), error, error * float(t.ppf(0.975, count - 1)), count)


def of(column: str) -> Measured:
    """What a column reads of a run."""
    return (lambda run: run.accuracy) if column == CLEAN else (lambda run: run.shifted[column])


def finals(runs: Iterable[Run], image_set: str, budget: str) -> dict[str, dict[int, Run]]:
    """The final runs by arm and seed, in the order of the arms."""
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        if (run.phase, run.image_set, run.budget) == (FINAL, image_set, budget):
            found.setdefault(run.arm, {})[run.seed] = run
    return {arm: found[arm] for arm in ARMS if arm in found}


def differences(
    by_arm: Mapping[str, Mapping[int, Run]], arm: str, measured: Measured, against: str = FROZEN
) -> list[float]:
    """An arm less another one, by default frozen BatchNorm, on the seeds that both have."""
    base, own = by_arm.get(against, {}), by_arm[arm]
    return [measured(own[seed]) - measured(base[seed]) for seed in sorted(own) if seed in base]
