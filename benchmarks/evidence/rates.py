"""How validation accuracy depends on the learning rate: the selection's first two steps as a table and a plot.

python -m benchmarks.evidence.rates benchmarks/evidence/results/*.jsonl -o docs/assets/evidence-rates.svg
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.runs import SELECTION, Run, read
from benchmarks.evidence.train import Settings
from benchmarks.report import Cell, Table, save_figure, to_markdown

Scores = Mapping[str, Mapping[float, Sequence[float]]]


def scores(
    runs: Iterable[Run], image_set: str, budget: str, note: str = "", distill: float = Settings.distill
) -> dict[str, dict[float, list[float]]]:
    """Validation accuracies by title and rate; norms are slow, and networks distil, as where the selection begins."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        begins = run.settings == Settings(run.rate, distill)
        if begins and (run.phase, run.image_set, run.budget) == (SELECTION, image_set, budget):
            arm = ARMS[run.arm]
            found[arm.title + note][run.rate * arm.rate_scale].append(run.accuracy)
    return {title: dict(sorted(by_rate.items())) for title, by_rate in found.items()}


def table(found: Scores, title: str) -> Table:
    """A row for each network, a column for each rate; the number of seeds where there are several."""
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    made = Table(title)
    for name, by_rate in found.items():
        row: dict[str, Cell] = {"network": name}
        made.rows.append(row | {f"{rate:g}": _cell(by_rate.get(rate, [])) for rate in rates})
    return made


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f}" + (f" ({len(values)} seeds)" if len(values) > 1 else "")


def draw(found: Scores, output: Path) -> None:
    """Accuracy over the rate."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes: Any = figure.subplots()
    for name, by_rate in found.items():
        axes.plot(list(by_rate), [statistics.fmean(values) for values in by_rate.values()], marker="o", label=name)
    axes.set_xscale("log")
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set(xlabel="learning rate", ylabel="validation accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, output)


def drawn(found: Scores, arms: Iterable[str]) -> Scores:
    """Of the networks those of some arms, with what was put aside of them.

    >>> list(drawn({"frozen BN": {}, "frozen BN, AdamW": {}, "frozen BN (before encoder scales)": {}}, ["frozen-bn"]))
    ['frozen BN', 'frozen BN (before encoder scales)']
    """
    titles = {ARMS[arm].title for arm in arms}
    return {name: by_rate for name, by_rate in found.items() if name.partition(" (")[0] in titles}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and draw the plot; the networks of every file but ``runs.jsonl`` have its name behind them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--set", dest="image_set", default="fashion-mnist")
    parser.add_argument("--budget", default="short")
    parser.add_argument("--drawn", nargs="+", choices=ARMS, help="The arms of the plot; all unless given.")
    options = parser.parse_args(argv)
    found: dict[str, dict[float, list[float]]] = {}
    for file in sorted(options.files, key=lambda file: file.stem != "runs"):
        note = "" if file.stem == "runs" else f" ({file.stem.replace('-', ' ')})"
        found |= scores(read(file), options.image_set, options.budget, note)
    print(to_markdown(table(found, f"Validation accuracy by learning rate: {options.image_set}, {options.budget}")))
    if options.output:
        draw(drawn(found, options.drawn or ARMS), options.output)


if __name__ == "__main__":
    main()
