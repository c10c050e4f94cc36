"""What final runs measured, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.runs import FINAL, Run
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS

CLEAN = "clean"
Measured = Callable[[Run], float]
Finals = dict[str, dict[int, Run]]  # by arm and seed
#: What a final run is judged on, in the order of the tables.
COLUMNS = (CLEAN, *(f"{name} {severity}" for name in SHIFTS for severity in SEVERITIES))


def of(column: str) -> Measured:
    """What a column reads of a run."""
    return (lambda run: run.accuracy) if column == CLEAN else (lambda run: run.shifted[column])


def finals(runs: Iterable[Run], image_set: str, budget: str) -> Finals:
    """The final runs by arm and seed, in the order of the arms."""
    found: Finals = {}
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
