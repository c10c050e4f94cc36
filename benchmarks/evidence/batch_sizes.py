"""Small batches as such: a pretrained network at batch size 1 to 32 with equal numbers of images, the paper's figure.

    python -m benchmarks.evidence.batch_sizes --out DIR [--quick]
    python -m benchmarks.evidence.batch_sizes --out DIR --larger [--device cuda --together]
    python -m benchmarks.evidence.batch_sizes --out benchmarks/evidence/results --table

By the protocol of ``docs/evidence-protocol.md``: each arm's rate is chosen for each batch size on validation images
with a seed of its own; new seeds, each with its own quarter of the test set, give the tables and the figure. Runs are
lines of ``DIR/batch_sizes.jsonl``, and the same command goes on where it was stopped. ``--table`` trains nothing;
``--larger`` has many images and large batches, where BatchNorm in training mode should be at its best.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.evidence.arms import ARMS, FROZEN, WARM
from benchmarks.evidence.batch_size_tables import Found, Point, differences, draw_figure, table
from benchmarks.evidence.images import Images, Splits, draw, share, smaller
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.sets import load_splits
from benchmarks.evidence.together import Task, Together, train_all
from benchmarks.evidence.train import Settings, Trained, accuracy, train
from benchmarks.report import to_markdown
from ilmconvert.data.sample_photographs import load_lite0

BATCH_SIZES = (1, 2, 4, 8, 32)
SHOWN = (FROZEN, "train-bn", "group-norm", "ilm-gn", "ilm-gn-range")
SHOWN_WARM = tuple(
    arm + WARM for arm in (FROZEN, "train-bn-fast", "group-norm", "ilm-gn", "ilm-gn-range", "ilm-in-first")
)
#: With ``--larger``, in the order in which they are run.
LARGE_BATCHES = (32, 128)
SHOWN_LARGER = tuple(arm + WARM for arm in (FROZEN, "train-bn-fast", "ilm-in-first", "ilm-gn"))
#: For batch size 2; they grow with the root of the batch size.
RATES = (0.002, 0.005, 0.012)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2, 3)
SIZE = 64


class Scale(NamedTuple):
    """How much is trained: what ``--quick`` makes small, and ``--larger`` large."""

    images: int = 400
    epochs: int = 3
    seeds: tuple[int, ...] = FINAL_SEEDS


LARGER = Scale(images=5_000, epochs=5)
QUICK = Scale(images=8, epochs=1, seeds=FINAL_SEEDS[:2])


class Job(NamedTuple):
    """One run."""

    arm: str
    batch_size: int
    rate: float
    seed: int


class Results:
    """What has been measured so far."""

    def __init__(self, lines: Lines, scale: Scale) -> None:
        self._lines, self._scale = lines, scale

    def __contains__(self, job: Job) -> bool:
        return self._key(job) in self._lines

    def keep(self, job: Job, found: float) -> None:
        """On disk at once."""
        self._lines.value(self._key(job), lambda: found)

    def rate(self, point: Point) -> float:
        """The best one on validation images."""
        return max(rates_at(point.batch_size), key=lambda rate: self._accuracy(Job(*point, rate, SELECTION_SEED)))

    def found(self, points: Sequence[Point]) -> Found:
        """Of the points whose runs are all there."""
        return {point: accuracies for point in points if (accuracies := self._of(point))}

    def _of(self, point: Point) -> dict[int, float]:
        try:
            rate = self.rate(point)
            return {seed: self._accuracy(Job(*point, rate, seed)) for seed in self._scale.seeds}
        except MissingLine:
            return {}

    def _accuracy(self, job: Job) -> float:
        return self._lines.known(self._key(job))

    def _key(self, job: Job) -> dict[str, str | int | float]:
        own = {"images": self._scale.images, "epochs": self._scale.epochs}
        return {"arm": job.arm, "batch": job.batch_size, "rate": job.rate, "seed": job.seed, **own}


def found_in(
    folder: Path, arms: Sequence[str], sizes: Sequence[int] = BATCH_SIZES, scale: Scale | None = None
) -> Found:
    """What has been measured of some arms; trains nothing."""
    results = Results(Lines(folder / "batch_sizes.jsonl"), scale or Scale())
    return results.found([Point(arm, size) for arm in arms for size in sizes])


class Sweep:
    """Makes the runs that are missing; ``together``, at the same time."""

    def __init__(
        self,
        source: nn.Module,
        splits: Splits,
        results: Results,
        scale: Scale,
        *,
        device: str = "cpu",
        together: bool = False,
    ) -> None:
        self._source, self._splits, self._results = source.to(device), splits, results
        self._scale, self._device, self._together = scale, device, together

    def make(self, points: Sequence[Point]) -> None:
        """The selection of every point, and then its final runs."""
        self._all([Job(*point, rate, SELECTION_SEED) for point in points for rate in rates_at(point.batch_size)])
        self._all([Job(*point, self._results.rate(point), seed) for point in points for seed in self._scale.seeds])

    def _all(self, jobs: Sequence[Job]) -> None:
        missing = [job for job in jobs if job not in self._results]
        for job, trained in self._at_once(missing) if self._together else map(self._alone, missing):
            self._results.keep(job, accuracy(trained.network, trained.prepare, self._tests(job.seed)))

    def _alone(self, job: Job) -> tuple[Job, Trained]:
        images, classes, epochs = self._drawn(job.seed), self._splits.num_classes, self._scale.epochs
        settings, size = Settings(job.rate), job.batch_size
        return job, train(
            ARMS[job.arm], settings, self._source, images, classes, epochs, seed=job.seed, batch_size=size
        )

    def _at_once(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Trained]]:
        points = dict.fromkeys(Point(*job[:2]) for job in jobs)
        groups = {point: [job for job in jobs if job[:2] == point] for point in points}
        made = {point: self._group(point, found) for point, found in groups.items()}
        train_all(list(made.values()))
        for point, group in made.items():
            yield from zip(groups[point], group.results(), strict=True)

    def _group(self, point: Point, jobs: Sequence[Job]) -> Together:
        images = {job.seed: self._drawn(job.seed) for job in jobs}
        tasks = [Task(Settings(job.rate), job.seed, images[job.seed]) for job in jobs]
        classes, epochs = self._splits.num_classes, self._scale.epochs
        return Together(ARMS[point.arm], tasks, self._source, classes, epochs, point.batch_size)

    def _drawn(self, seed: int) -> Images:
        return draw(self._splits.train, self._scale.images, seed).to(self._device)

    def _tests(self, seed: int) -> Images:
        validation = seed == SELECTION_SEED
        images = self._splits.val if validation else share(self._splits.test, seed, len(FINAL_SEEDS))
        return images.to(self._device)


def rates_at(batch_size: int) -> list[float]:
    """
    >>> rates_at(8)
    [0.004, 0.01, 0.024]
    """
    return [round(rate * (batch_size / 2) ** 0.5, 6) for rate in RATES]


def main(argv: Sequence[str] | None = None) -> None:
    """Run it, print the tables and draw the figure."""
    options = _options().parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the processor
    scale = QUICK if options.quick else LARGER if options.larger else Scale()
    arms = options.arms or (SHOWN_LARGER if options.larger else SHOWN)
    sizes = options.batch_sizes or (LARGE_BATCHES if options.larger else BATCH_SIZES)
    points = [Point(arm, size) for arm in arms for size in sizes]
    results = Results(Lines(options.out / "batch_sizes.jsonl"), scale)
    if not options.table:
        splits = load_splits("fashion-mnist", SIZE, options.out / "cache", options.data_root)
        splits = smaller(splits, scale.images) if options.quick else splits
        sweep = Sweep(load_lite0(), splits, results, scale, device=options.device, together=options.together)
        sweep.make(points)
    found = results.found(points)
    print("\n\n".join(to_markdown(made) for made in (table(found), differences(found)) if made.rows))
    if options.output:
        draw_figure(found, options.output)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, help="The figure.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM")
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--larger", action="store_true", help="5,000 images, five passes; batches of 32 and 128.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--together", action="store_true", help="Train the missing runs at the same time, on a GPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="Train nothing; show what is there.")
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    return parser


if __name__ == "__main__":
    main()
