"""The tables of the evidence.

python -m benchmarks.evidence.tables benchmarks/evidence/results/runs.jsonl
python -m benchmarks.evidence.tables benchmarks/evidence/results/runs.jsonl --against frozen-bn-standardised
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.evidence.arms import ADAMW, ARMS, FROZEN, STANDARDISED, WINNERS
from benchmarks.evidence.paired import CLEAN, COLUMNS, WAYS, best_way, differences, finals, mean_of, of
from benchmarks.evidence.runs import SELECTION, Run, read
from benchmarks.evidence.select import SEEDS, at_edge, choose
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS
from benchmarks.evidence.train import Settings
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.evaluation.estimate import estimate

ByArm = Mapping[str, Mapping[int, Run]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="runs.jsonl")
    parser.add_argument("--against", choices=ARMS, default=FROZEN, help="What all differences are against.")
    options = parser.parse_args(argv)
    runs = [run for file in options.files for run in read(file)]
    print(to_markdown(overview(runs, options.against)), end="\n\n")
    for image_set, budget in dict.fromkeys((run.image_set, run.budget) for run in runs):
        print("\n\n".join(to_markdown(table) for table in tables(runs, image_set, budget, options.against)), end="\n\n")


def in_short(runs: Sequence[Run], tasks: Sequence[tuple[str, str]], recipe: str = "first-norm") -> Table:
    """A recipe of ``WINNERS`` less both baselines, each in the way of training that is best on these test images."""
    table = Table(f"Frozen BatchNorm, the standardisation, and {recipe}")
    for image_set, budget in tasks:
        by_arm = finals(runs, image_set, budget)
        for title, columns in {CLEAN: (CLEAN,), "nine shifts": COLUMNS[1:]}.items():
            frozen, standardised = (best_way(by_arm, arm, mean_of(columns)) for arm in (FROZEN, STANDARDISED))
            if standardised is not None and WINNERS[recipe] in by_arm:
                here: dict[str, Cell] = {"set, budget": f"{image_set}, {budget}", "test images": title}
                table.rows.append(here | _step_by_step(by_arm, columns, frozen, standardised, recipe))
    return table


def augmentation(runs: Sequence[Run], plain: str, augmented: str, budget: str) -> Table:
    """The arms of a set with and without augmented training images, less frozen BatchNorm without, paired by seed."""
    table, against = Table("What augmentation gives, and what is gained without it"), FROZEN + ADAMW
    bare, seen = (finals(runs, name, budget) for name in (plain, augmented))
    every = bare | {f"{arm}, augmented": runs for arm, runs in seen.items()}
    for arm in seen if against in bare else ():
        for name in (arm, f"{arm}, augmented"):
            row: dict[str, Cell] = {"network": name.replace(arm, ARMS[arm].title)}
            for title, columns in {CLEAN: (CLEAN,), "nine shifts": COLUMNS[1:]}.items():
                row[title] = _cell(every, name, columns, against) if name in every else "-"
            table.rows.append(row)
    return table


def _step_by_step(
    by_arm: ByArm, columns: Sequence[str], frozen: str | None, standardised: str, recipe: str
) -> dict[str, Cell]:
    base, behind, arm = FROZEN + (frozen or ""), STANDARDISED + standardised, WINNERS[recipe]
    return {
        "frozen BN": "-" if frozen is None else f"{_cell(by_arm, base, columns, base)} ({WAYS[frozen]})",
        "frozen BN, standardised": f"{_cell(by_arm, behind, columns, behind)} ({WAYS[standardised]})",
        "standardised, less frozen BN": _cell(by_arm, behind, columns, base),
        f"`{recipe}`, less frozen BN": _cell(by_arm, arm, columns, base),
        f"`{recipe}`, less standardised": _cell(by_arm, arm, columns, behind),
    }


def overview(runs: Sequence[Run], against: str = FROZEN) -> Table:
    """Clean images and the mean over all shifts, for every set and budget that was run."""
    table = Table(f"Less {ARMS[against].title}, paired by seed, 95 % interval, and in standard errors")
    tasks = dict.fromkeys((run.image_set, run.budget) for run in runs)
    found = {task: by_arm for task in tasks if against in (by_arm := finals(runs, *task))}
    for arm in ARMS:
        row: dict[str, Cell] = {"network": ARMS[arm].title}
        for (image_set, budget), by_arm in found.items():
            for title, columns in {CLEAN: (CLEAN,), "all shifts": COLUMNS[1:]}.items():
                here = _cell(by_arm, arm, columns, against) if arm in by_arm else "-"
                row[f"{image_set}, {budget}, {title}"] = here
        if any(cell != "-" for cell in list(row.values())[1:]):
            table.rows.append(row)
    return table


def tables(runs: Sequence[Run], image_set: str, budget: str, against: str = FROZEN) -> Iterator[Table]:
    """Those of one set and budget that have rows."""
    by_arm = finals(runs, image_set, budget)
    here = f"{image_set}, budget {budget}"
    found = [chosen(runs, image_set, budget, here)]
    if by_arm:
        found += [summary(by_arm, here, against), accuracies(by_arm, here)]
        found += [by_severity(by_arm, here, against), moved(by_arm, here)]
    yield from (table for table in found if table.rows)


def chosen(runs: Sequence[Run], image_set: str, budget: str, here: str) -> Table:
    """The settings that were chosen, and the validation accuracy that they had."""
    table = Table(f"Chosen on validation images: {here}")
    for arm in ARMS:
        scores = {
            (run.settings, run.seed): run.accuracy
            for run in runs
            if run.phase == SELECTION and run.task == (image_set, budget, arm)
        }
        try:
            settings = choose(lambda s, seed, scores=scores: scores[s, seed], sorted(_rates(scores)))  # type: ignore[misc]
        except (KeyError, IndexError, ValueError):
            continue  # not all of its runs are there yet
        # Two aids that were kept each for itself have not been tried together.
        tried = [scores[settings, seed] for seed in SEEDS if (settings, seed) in scores]
        table.rows.append(
            {
                "network": ARMS[arm].title,
                "rate": f"{settings.rate * ARMS[arm].rate_scale:g}" + (" (edge)" if at_edge(settings) else ""),
                "distillation": f"{settings.distill:g}",
                "norms' rate": f"x{settings.norm_scale:g}",
                "validation": f"{sum(tried) / len(tried):.3f}" if len(tried) == len(SEEDS) else "-",
                "runs": len(scores),
            }
        )
    return table


def _rates(scores: Mapping[tuple[Settings, int], float]) -> set[float]:
    return {settings.rate for settings, _ in scores}


def summary(by_arm: ByArm, here: str, against: str) -> Table:
    """Clean, the mean over all shifts, and each shift as the mean of its severities, less another arm."""
    table = Table(f"Less {ARMS[against].title}, paired by seed, 95 % interval, and in standard errors: {here}")
    groups = {CLEAN: (CLEAN,), "all shifts": COLUMNS[1:]}
    groups |= {name: tuple(f"{name} {severity}" for severity in SEVERITIES) for name in SHIFTS}
    for arm in by_arm:
        row: dict[str, Cell] = {"network": ARMS[arm].title, "seeds": len(by_arm[arm])}
        for title, columns in groups.items():
            row[title] = _cell(by_arm, arm, columns, against)
        table.rows.append(row)
    return table


def _cell(by_arm: ByArm, arm: str, columns: Sequence[str], against: str) -> str:
    mean = mean_of(columns)
    if arm == against:
        return estimate([mean(run) for run in by_arm[arm].values()]).text()
    values = differences(by_arm, arm, mean, against)
    if not values:
        return "-"
    return estimate(values).as_difference()


def accuracies(by_arm: ByArm, here: str) -> Table:
    """Mean accuracy of every arm under every condition."""
    table = Table(f"Accuracy, mean over seeds: {here}")
    for column in COLUMNS:
        row: dict[str, Cell] = {"test images": column}
        for arm, runs in by_arm.items():
            row[ARMS[arm].title] = f"{estimate([of(column)(run) for run in runs.values()]).mean:.3f}"
        table.rows.append(row)
    return table


def by_severity(by_arm: ByArm, here: str, against: str) -> Table:
    """Every condition of every arm less another one."""
    table = Table(f"The same by severity: {here}")
    for column in COLUMNS:
        row: dict[str, Cell] = {"test images": column}
        row |= {ARMS[arm].title: _cell(by_arm, arm, (column,), against) for arm in by_arm if arm != against}
        if len(row) > 1:
            table.rows.append(row)
    return table


def moved(by_arm: ByArm, here: str) -> Table:
    """How far the parts of the norms moved, means over seeds."""
    titles = {
        "affine": "weight and bias",
        "restore": "restoring path",
        "gate": "meta-network, scale",
        "offset": "meta-network, shift",
        "meta": "classes that it decides",
    }
    table = Table(f"How far the norms moved, mean over seeds: {here}")
    for arm, runs in by_arm.items():
        row: dict[str, Cell] = {"network": ARMS[arm].title}
        for key, title in titles.items():
            values = [run.moved[key] for run in runs.values() if key in run.moved]
            row[title] = f"{sum(values) / len(values):.4f}" if values else "-"
        table.rows.append(row)
    return table


if __name__ == "__main__":
    main()
