"""The plot of the evidence: every arm less frozen BatchNorm or another one, on clean and shifted test images.

python -m benchmarks.evidence.plot benchmarks/evidence/results/runs.jsonl -o docs/assets/evidence.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.paired import CLEAN, COLUMNS, differences, finals, of
from benchmarks.evidence.runs import Run, read
from benchmarks.report import save_figure
from ilmconvert.errors import ILMConvertError
from ilmconvert.evaluation.estimate import estimate

_WIDTH = 0.8  # of a group of points


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="runs.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["fashion-mnist"], help="One below the other.")
    parser.add_argument("--budget", default="short")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="Default: all that were run, less hopeless ones.")
    parser.add_argument("--against", choices=ARMS, default=FROZEN, help="What all differences are against.")
    options = parser.parse_args(argv)
    runs = [run for file in options.files for run in read(file)]
    draw(
        runs,
        options.output,
        image_sets=options.sets,
        budget=options.budget,
        arms=options.arms,
        against=options.against,
    )


def draw(
    runs: Sequence[Run],
    output: Path,
    *,
    image_sets: Sequence[str],
    budget: str,
    arms: Sequence[str] | None,
    against: str = FROZEN,
) -> None:
    """Points with 95 % intervals; arms far below the rest on clean images are left out unless they are named."""
    figure = Figure(figsize=(11, 1 + 4 * len(image_sets)), layout="constrained")
    panels: Any = figure.subplots(len(image_sets), 1, sharex=True, squeeze=False)
    colours: dict[str, str] = {}
    for axes, image_set in zip(panels[:, 0], image_sets, strict=True):
        by_arm = finals(runs, image_set, budget)
        others = [arm for arm in by_arm if arm != against]
        shown = [arm for arm in others if (arm in arms if arms else not _hopeless(by_arm, arm, against))]
        if not shown:
            raise ILMConvertError(
                f"there are no final runs of {image_set}, {budget} to draw beside {against}; make them first"
            )
        colours |= {arm: f"C{len(colours) + i}" for i, arm in enumerate(a for a in shown if a not in colours)}
        _draw_set(axes, by_arm, {arm: colours[arm] for arm in shown}, against)
        axes.set(
            ylabel=f"accuracy less {ARMS[against].title}",
            title=f"{image_set}, budget {budget}: paired by seed, 95 % intervals",
        )
    panels[0, 0].legend(loc="best", fontsize="small")
    save_figure(figure, output)


def _draw_set(axes: Any, by_arm: dict[str, dict[int, Run]], colours: dict[str, str], against: str) -> None:
    for number, (arm, colour) in enumerate(colours.items()):
        found = [estimate(differences(by_arm, arm, of(column), against)) for column in COLUMNS]
        step = _WIDTH / len(colours)
        places = [i - _WIDTH / 2 + step * (number + 0.5) for i in range(len(COLUMNS))]
        axes.errorbar(
            places,
            [e.mean for e in found],
            yerr=[e.half or 0.0 for e in found],
            fmt="o",
            markersize=4,
            capsize=2,
            label=ARMS[arm].title,
            color=colour,
        )
    axes.axhline(0, color="black", linewidth=1)
    for edge in range(0, len(COLUMNS), 2):
        axes.axvline(edge + 0.5, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=45, ha="right")
    axes.set_xlim(-0.5, len(COLUMNS) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def _hopeless(by_arm: dict[str, dict[int, Run]], arm: str, against: str) -> bool:
    values = differences(by_arm, arm, of(CLEAN), against)
    return not values or estimate(values).mean < -0.2


if __name__ == "__main__":
    main()
