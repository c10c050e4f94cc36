"""The plot of the evidence: every arm less frozen BatchNorm, on clean and shifted test images.

python -m benchmarks.evidence.plot benchmarks/evidence/results/runs.jsonl -o docs/assets/evidence.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.paired import CLEAN, COLUMNS, differences, estimate, finals, of
from benchmarks.evidence.runs import Run, read
from ilmconvert.errors import ILMConvertError

_WIDTH = 0.8  # of a group of points


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="runs.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", dest="image_set", default="fashion-mnist")
    parser.add_argument("--budget", default="short")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="Default: all that were run, less hopeless ones.")
    options = parser.parse_args(argv)
    runs = [run for file in options.files for run in read(file)]
    draw(runs, options.output, image_set=options.image_set, budget=options.budget, arms=options.arms)


def draw(runs: Sequence[Run], output: Path, *, image_set: str, budget: str, arms: Sequence[str] | None) -> None:
    """Points with 95 % intervals; arms far below the rest on clean images are left out unless they are named."""
    by_arm = finals(runs, image_set, budget)
    shown = [arm for arm in by_arm if arm != FROZEN and (arm in arms if arms else not _hopeless(by_arm, arm))]
    if not shown:
        raise ILMConvertError(
            f"there are no final runs of {image_set}, {budget} to draw beside {FROZEN}; make them first"
        )
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes: Any = figure.subplots()
    for number, arm in enumerate(shown):
        found = [estimate(differences(by_arm, arm, of(column))) for column in COLUMNS]
        step = _WIDTH / len(shown)
        places = [i - _WIDTH / 2 + step * (number + 0.5) for i in range(len(COLUMNS))]
        axes.errorbar(
            places,
            [e.mean for e in found],
            yerr=[e.half or 0.0 for e in found],
            fmt="o",
            markersize=4,
            capsize=2,
            label=ARMS[arm].title,
        )
    axes.axhline(0, color="black", linewidth=1)
    for edge in range(0, len(COLUMNS), 2):
        axes.axvline(edge + 0.5, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=45, ha="right")
    axes.set(ylabel="accuracy less frozen BN", title=f"{image_set}, budget {budget}: paired by seed, 95 % intervals")
    axes.set_xlim(-0.5, len(COLUMNS) - 0.5)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def _hopeless(by_arm: dict[str, dict[int, Run]], arm: str) -> bool:
    values = differences(by_arm, arm, of(CLEAN))
    return not values or estimate(values).mean < -0.2


if __name__ == "__main__":
    main()
