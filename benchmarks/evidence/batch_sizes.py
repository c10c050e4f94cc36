"""Small batches as such: a pretrained network at batch size 1 to 32 with equal numbers of images, the paper's figure.

    python -m benchmarks.evidence.batch_sizes --out DIR [--quick]

Each arm's rate is chosen for each batch size on validation images with a seed of its own; new seeds and the full test
set give the table and ``DIR/batch_sizes.svg``. Runs are lines of ``DIR/batch_sizes.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.paired import Estimate, estimate
from benchmarks.evidence.sets import Images, Splits, draw, load_splits, smaller
from benchmarks.evidence.train import Settings, accuracy, train
from benchmarks.report import Cell, Table, save_figure, to_markdown
from ilmconvert.data.sample_photographs import load_lite0

BATCH_SIZES = (1, 2, 4, 8, 32)
SHOWN = (FROZEN, "train-bn", "group-norm", "ilm-gn", "ilm-gn-range")
#: For batch size 2; they grow with the root of the batch size.
RATES = (0.002, 0.005, 0.012)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2, 3)
SIZE, IMAGES, EPOCHS = 64, 400, 3

Found = Mapping[tuple[str, int], Estimate]


class Sweep:
    """Runs of every arm at every batch size, each made once."""

    def __init__(self, source: nn.Module, splits: Splits, lines: Lines, *, images: int, epochs: int) -> None:
        self._source, self._splits, self._lines = source, splits, lines
        self._images, self._epochs = images, epochs

    def estimate(self, arm: str, batch_size: int, seeds: Sequence[int]) -> Estimate:
        """Test accuracy at the rate that is best on validation images."""
        rates = [round(rate * (batch_size / 2) ** 0.5, 6) for rate in RATES]
        scores = {rate: self._accuracy(arm, batch_size, rate, SELECTION_SEED, self._splits.val) for rate in rates}
        best = max(scores, key=lambda rate: scores[rate])
        return estimate([self._accuracy(arm, batch_size, best, seed, self._splits.test) for seed in seeds])

    def _accuracy(self, arm: str, batch_size: int, rate: float, seed: int, part: Images) -> float:
        key: dict[str, str | int | float] = {"arm": arm, "batch": batch_size, "rate": rate, "seed": seed}
        return self._lines.value(
            {**key, "images": self._images, "epochs": self._epochs},
            lambda: self._trained(arm, batch_size, rate, seed, part),
        )

    def _trained(self, arm: str, batch_size: int, rate: float, seed: int, part: Images) -> float:
        images, classes = draw(self._splits.train, self._images, seed), self._splits.num_classes
        trained = train(
            ARMS[arm], Settings(rate), self._source, images, classes, self._epochs, seed=seed, batch_size=batch_size
        )
        return accuracy(trained.network, trained.prepare, part)


def table(found: Found) -> Table:
    """A row for each arm, a column for each batch size."""
    made = Table("Accuracy by batch size, equal numbers of images, 95 % intervals over seeds")
    for arm in dict.fromkeys(arm for arm, _ in found):
        row: dict[str, Cell] = {"network": ARMS[arm].title}
        row |= {str(size): value.text() for (name, size), value in found.items() if name == arm}
        made.rows.append(row)
    return made


def draw_figure(found: Found, output: Path) -> None:
    """The figure of the paper: accuracy over the batch size."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    for arm in dict.fromkeys(arm for arm, _ in found):
        points = {size: value for (name, size), value in found.items() if name == arm}
        means, halves = [v.mean for v in points.values()], [v.half or 0.0 for v in points.values()]
        axes.errorbar(list(points), means, yerr=halves, marker="o", capsize=2, label=ARMS[arm].title)
    axes.set_xscale("log", base=2)
    sizes = sorted({size for _, size in found})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="batch size", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run it, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="image_set", default="fashion-mnist")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=SHOWN, metavar="ARM")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    splits = load_splits(options.image_set, SIZE, options.out / "cache", options.data_root)
    seeds: tuple[int, ...] = FINAL_SEEDS
    images, epochs = IMAGES, EPOCHS
    if options.quick:
        splits, images, epochs, seeds = smaller(splits, 8), 8, 1, FINAL_SEEDS[:2]
    sweep = Sweep(load_lite0(), splits, Lines(options.out / "batch_sizes.jsonl"), images=images, epochs=epochs)
    found = {(arm, size): sweep.estimate(arm, size, seeds) for size in options.batch_sizes for arm in options.arms}
    print(to_markdown(table(found)))
    draw_figure(found, options.out / "batch_sizes.svg")


if __name__ == "__main__":
    main()
