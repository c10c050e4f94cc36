"""Tables of the runs of :mod:`benchmarks.finetune`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.finetune_arms import ANNEAL, FROZEN, IDENTITY, LAYERS, ablations, arms, order, title
from benchmarks.finetune_data import SETS
from benchmarks.report import Cell, Table
from ilmconvert.surgery.group_norm_baseline import BASELINES


@dataclass(frozen=True)
class Run:
    """One line of the results: an arm on a set with a seed; ``accuracy`` is that of the last epoch's weights.

    ``settings`` is the digest of everything else that the run was made with.
    """

    image_set: str
    arm: str
    seed: int
    accuracy: float
    seconds: float
    settings: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.image_set, self.arm, self.seed, self.settings


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; of one value no error.

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.5773502691896258)
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def accuracy_table(runs: Iterable[Run]) -> Table:
    """An arm a row, a set a column: mean and standard error of the accuracy."""
    cells = grouped(runs)
    sets = list(dict.fromkeys(name for name, _ in cells))
    table = Table("Accuracy after fine-tuning at batch size 2: mean and standard error over seeds")
    for arm in [*BASELINES, *arms(), *ablations()]:
        if any(key == arm for _, key in cells):
            row: dict[str, Cell] = {"network": title(arm)}
            for name in sets:
                values = list(cells.get((name, arm), {}).values())
                row[name] = text_of(*mean_and_error(values)) if values else None
            table.rows.append(row)
    return table


def against_table(runs: Iterable[Run], other: str, title_: str) -> Table:
    """Every ILM arm less ``other`` on the same seeds: mean and standard error of the paired differences."""
    cells = grouped(runs)
    table = Table(title_)
    for (name, arm), values in cells.items():
        base = cells.get((name, other), {})
        common = [values[seed] - base[seed] for seed in values if seed in base]
        if arm == other or arm in BASELINES or not common:
            continue
        mean, error = mean_and_error(common)
        ratio = mean / error if error else None
        table.rows.append(
            {"set": name, "network": title(arm), "difference": text_of(mean, error, "+"), "in errors": ratio}
        )
    return table


def goals(runs: Iterable[Run]) -> Table:
    """The best conversion of each set against frozen BatchNorm, and the annealed layer against the identity start."""
    cells = grouped(runs)
    table = Table("Goals")
    for name in dict.fromkeys(name for name, _ in cells):
        scores = {arm: mean_and_error(list(v.values())) for (n, arm), v in cells.items() if n == name}
        own = {arm: score for arm, score in scores.items() if arm not in BASELINES}
        best = max(own, key=lambda arm: own[arm][0])
        pairs = [(best, FROZEN)] + [(f"{to} {ANNEAL}", f"{to} {IDENTITY}") for to in LAYERS]
        for arm, other in pairs:
            if arm in scores and other in scores:
                difference = scores[arm][0] - scores[other][0]
                error = sum((e or 0.0) ** 2 for _, e in (scores[arm], scores[other])) ** 0.5
                table.rows.append(
                    {
                        "set": name,
                        "network": title(arm),
                        "against": title(other),
                        "difference": f"{difference:+.3f}",
                        "standard error": f"{error:.3f}",
                    }
                )
    return table


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str], dict[int, float]]:
    """Accuracy by seed, by (set, arm)."""
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for r in runs:
        cells.setdefault((r.image_set, r.arm), {})[r.seed] = r.accuracy
    return {key: cells[key] for key in sorted(cells, key=lambda key: (list(SETS).index(key[0]), order(key[1])))}


def text_of(mean: float, error: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
