"""What final runs measured, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from benchmarks.evidence.arms import ADAMW, ARMS, FROZEN, WARM
from benchmarks.evidence.runs import FINAL, Run
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS

CLEAN = "clean"
Measured = Callable[[Run], float]
Finals = dict[str, dict[int, Run]]  # by arm and seed
#: What a final run is judged on, in the order of the tables.
COLUMNS = (CLEAN, *(f"{name} {severity}" for name in SHIFTS for severity in SEVERITIES))


#: What ends the name of an arm, by the way in which it is trained.
WAYS = {
    "": "SGD",
    WARM: "SGD, warm-up",
    "-adamw": "slower AdamW",
    "-adamw" + WARM: "slower AdamW, warm-up",
    ADAMW: "AdamW, warm-up",
}


def of(column: str) -> Measured:
    """What a column reads of a run."""
    return (lambda run: run.accuracy) if column == CLEAN else (lambda run: run.shifted[column])


def mean_of(columns: Sequence[str]) -> Measured:
    """The mean of some columns."""
    return lambda run: sum(of(column)(run) for column in columns) / len(columns)


def best_way(by_arm: Mapping[str, Mapping[int, Run]], arm: str, measured: Measured) -> str | None:
    """Which of :data:`WAYS` gives an arm the highest mean on these test images; None if it wasn't run.

    A baseline that is chosen so is taken at no less than its best. A way with fewer seeds than another doesn't count.
    """
    found = {way: by_arm[arm + way] for way in WAYS if arm + way in by_arm}
    most = max(map(len, found.values()), default=0)
    means = {way: fmean(map(measured, runs.values())) for way, runs in found.items() if len(runs) == most}
    return max(means, key=means.__getitem__, default=None)


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
