"""Small batches as such: a pretrained network at batch size 1 to 32 with equal numbers of images, the paper's figure.

    python -m benchmarks.evidence.batch_sizes --out DIR [--quick]

Each arm's rate is chosen for each batch size on validation images with a seed of its own; new seeds and the full test
set give the table and ``DIR/batch_sizes.svg``. Runs are lines of ``DIR/batch_sizes.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.paired import Estimate, estimate
from benchmarks.evidence.sets import Images, Splits, draw, load_splits, smaller
from benchmarks.evidence.together import Task, Together, train_all
from benchmarks.evidence.train import Settings, Trained, accuracy, train
from benchmarks.report import Cell, Table, save_figure, to_markdown
from ilmconvert.data.sample_photographs import load_lite0

BATCH_SIZES = (1, 2, 4, 8, 32)
SHOWN = (FROZEN, "train-bn", "group-norm", "ilm-gn", "ilm-gn-range")
#: For batch size 2; they grow with the root of the batch size.
RATES = (0.002, 0.005, 0.012)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2, 3)
SIZE, IMAGES, EPOCHS = 64, 400, 3

Found = Mapping[tuple[str, int], Estimate]


class Job(NamedTuple):
    """One run."""

    arm: str
    batch_size: int
    rate: float
    seed: int


class Sweep:
    """Runs of every arm at every batch size, each made once; ``together``, all that are missing at the same time."""

    def __init__(
        self,
        source: nn.Module,
        splits: Splits,
        lines: Lines,
        *,
        images: int,
        epochs: int,
        device: str = "cpu",
        together: bool = False,
    ) -> None:
        self._source, self._splits, self._lines = source.to(device), splits, lines
        self._images, self._epochs, self._device, self._together = images, epochs, device, together

    def estimates(self, arms: Sequence[str], batch_sizes: Sequence[int], seeds: Sequence[int]) -> Found:
        """Test accuracy at the rate that is best on validation images."""
        tasks = [(arm, size) for size in batch_sizes for arm in arms]
        self._make([Job(*task, rate, SELECTION_SEED) for task in tasks for rate in rates_at(task[1])])
        best = {task: max(rates_at(task[1]), key=partial(self._score, task)) for task in tasks}
        self._make([Job(*task, rate, seed) for task, rate in best.items() for seed in seeds])
        return {task: estimate([self._accuracy(Job(*task, best[task], seed)) for seed in seeds]) for task in tasks}

    def _make(self, jobs: Sequence[Job]) -> None:
        """The runs that are missing."""
        missing = [job for job in jobs if self._key(job) not in self._lines]
        if not self._together:
            for job in missing:
                arm, images = ARMS[job.arm], self._drawn(job.seed)
                trained = train(
                    arm,
                    Settings(job.rate),
                    self._source,
                    images,
                    self._splits.num_classes,
                    self._epochs,
                    seed=job.seed,
                    batch_size=job.batch_size,
                )
                self._keep(job, trained)
            return
        tasks = dict.fromkeys(job[:2] for job in missing)
        groups = {task: [job for job in missing if job[:2] == task] for task in tasks}
        made = [self._group(found) for found in groups.values()]
        train_all(made)
        for group, found in zip(made, groups.values(), strict=True):
            for job, trained in zip(found, group.results(), strict=True):
                self._keep(job, trained)

    def _group(self, jobs: Sequence[Job]) -> Together:
        images = {job.seed: self._drawn(job.seed) for job in jobs}
        tasks = [Task(Settings(job.rate), job.seed, images[job.seed]) for job in jobs]
        arm, size = ARMS[jobs[0].arm], jobs[0].batch_size
        return Together(arm, tasks, self._source, self._splits.num_classes, self._epochs, size)

    def _drawn(self, seed: int) -> Images:
        return draw(self._splits.train, self._images, seed).to(self._device)

    def _keep(self, job: Job, trained: Trained) -> None:
        part = (self._splits.val if job.seed == SELECTION_SEED else self._splits.test).to(self._device)
        self._lines.value(self._key(job), lambda: accuracy(trained.network, trained.prepare, part))

    def _score(self, task: tuple[str, int], rate: float) -> float:
        return self._accuracy(Job(*task, rate, SELECTION_SEED))

    def _accuracy(self, job: Job) -> float:
        return self._lines.value(self._key(job), _never)

    def _key(self, job: Job) -> dict[str, str | int | float]:
        own: dict[str, str | int | float] = {"images": self._images, "epochs": self._epochs}
        return {"arm": job.arm, "batch": job.batch_size, "rate": job.rate, "seed": job.seed, **own}


def rates_at(batch_size: int) -> list[float]:
    """
    >>> rates_at(8)
    [0.004, 0.01, 0.024]
    """
    return [round(rate * (batch_size / 2) ** 0.5, 6) for rate in RATES]


def _never() -> float:
    raise MissingLine


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
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--together", action="store_true", help="Train the missing runs at the same time, on a GPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the processor
    splits = load_splits(options.image_set, SIZE, options.out / "cache", options.data_root)
    seeds: tuple[int, ...] = FINAL_SEEDS
    images, epochs = IMAGES, EPOCHS
    if options.quick:
        splits, images, epochs, seeds = smaller(splits, 8), 8, 1, FINAL_SEEDS[:2]
    lines = Lines(options.out / "batch_sizes.jsonl")
    sweep = Sweep(
        load_lite0(),
        splits,
        lines,
        images=images,
        epochs=epochs,
        device=options.device,
        together=options.together,
    )
    found = sweep.estimates(options.arms, options.batch_sizes, seeds)
    print(to_markdown(table(found)))
    draw_figure(found, options.out / "batch_sizes.svg")


if __name__ == "__main__":
    main()
