"""What a standardisation of each image has to do with accuracy under noise: three guesses, on validation images.

    python -m benchmarks.evidence.noise --out DIR [--sets fashion-mnist clipart] [--quick]
    python -m benchmarks.evidence.noise --out benchmarks/evidence/results --table

Noise adds to an image's deviation, by which the standardisation divides. If that were the loss, the statistics of the
clean image would bring it back when the network is tested, and means over 8 x 8 pixels, which hardly see the noise,
when it is trained as well. And the standardisation moves an image's mean to zero, from where the network knows it.
Frozen BatchNorm, 600 steps, the settings that the protocol chose for it; seeds of the selection. Numbers are lines of
``DIR/noise.jsonl``; ``--table`` trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.evidence.arms import ARMS, STANDARDISED
from benchmarks.evidence.begin import normalized
from benchmarks.evidence.images import Splits, draw, smaller
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.sets import SETS, load_splits
from benchmarks.evidence.shifts import shifted
from benchmarks.evidence.train import Settings, train
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.evaluation.estimate import estimate

ARM, SETTINGS = STANDARDISED, Settings(0.005, distill=0.5, norm_scale=0.1)
SEEDS, SEVERITIES = (1000, 1001, 1002, 1003), (3, 5)
CLEAN, OWN, OF_CLEAN = "clean", "own statistics", "statistics of the clean image"
#: What a network is tested on, and by whose statistics these images are standardised.
TESTS = ((CLEAN, OWN), *((f"noise {severity}", of) for severity in SEVERITIES for of in (OWN, OF_CLEAN)))
SHOWN = ("fashion-mnist", "clipart")  # the sets that it is measured on
SIZE, TESTED, BATCH = 64, 500, 16
_CELL = 8


class Scale(NamedTuple):
    """What ``--quick`` makes small."""

    images: int = 400
    epochs: int = 3


@dataclass(frozen=True)
class Standardization:
    """Each image to the mean deviation of the training images.

    Attributes:
        averaged: over how many pixels to a side an image is averaged before its statistics are taken.
        centred: whether its mean becomes zero; otherwise it becomes that of the training images.
    """

    averaged: int = 1
    centred: bool = True

    def statistics(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Deviation and mean of each image, (N, 1, 1, 1)."""
        x = F.avg_pool2d(normalized(pixels), self.averaged)
        return torch.std_mean(x, (1, 2, 3), keepdim=True, correction=0)  # type: ignore[return-value]

    def fitted(self, training: Tensor) -> Callable[..., Tensor]:
        """:meth:`prepared` with what is usual among training images."""
        return partial(self.prepared, [values.mean() for values in self.statistics(training)])

    def prepared(self, usual: Sequence[Tensor], pixels: Tensor, measured: Tensor | None = None) -> Tensor:
        """``pixels`` by the statistics of ``measured``, by default their own; ``usual`` is a deviation and a mean."""
        deviation, mean = self.statistics(pixels if measured is None else measured)
        centred = (normalized(pixels) - mean) / deviation.clamp(min=1e-6) * usual[0]
        return centred if self.centred else centred + usual[1]


WAYS = {
    "of all pixels": Standardization(),
    f"of means over {_CELL} x {_CELL} pixels": Standardization(averaged=_CELL),
    "of all pixels, to the training images' mean": Standardization(centred=False),
}


class Measured(NamedTuple):
    """What a line of the file is of: a network, and what it was tested on.

    Attributes:
        way: of standardising, a key of ``WAYS``.
        test: clean images, or noise and its severity.
        statistics: by whose the tested images are standardised.
    """

    image_set: str
    way: str
    seed: int
    test: str = CLEAN
    statistics: str = OWN

    def key(self, scale: Scale) -> dict[str, str | int | float]:
        """Of its line."""
        return self._asdict() | scale._asdict()


def measure(lines: Lines, scale: Scale, of: Measured, source: nn.Module, splits: Splits) -> None:
    """Train the network of a set, way and seed, and test it, if that hasn't been done."""
    wanted = [of._replace(test=test, statistics=statistics) for test, statistics in TESTS]
    if all(test.key(scale) in lines for test in wanted):
        return
    training = draw(splits.train, scale.images, of.seed)
    prepare = WAYS[of.way].fitted(training.pixels)
    classes, epochs = splits.num_classes, scale.epochs
    trained = train(ARMS[ARM], SETTINGS, source, training, classes, epochs, seed=of.seed, prepare=prepare)
    clean = splits.val.subset(list(range(min(TESTED, len(splits.val)))))
    for test in wanted:
        pixels = clean.pixels if test.test == CLEAN else shifted(clean.pixels, *_named(test.test), of.seed)
        measured = clean.pixels if test.statistics == OF_CLEAN else pixels
        parts = zip(pixels.split(BATCH), measured.split(BATCH), strict=True)
        with torch.inference_mode():
            classes_found = torch.cat([trained.network(prepare(*part)).argmax(-1) for part in parts])
        right = (classes_found == clean.labels).double().mean().item()
        lines.value(test.key(scale), lambda right=right: right)  # type: ignore[misc]


def table(lines: Lines, scale: Scale, image_set: str) -> Table:
    """Accuracy with the usual standardisation, and differences from it, paired by seed; of the seeds that are there."""
    made, usual = Table(f"{image_set}: standardised by the statistics ..."), next(iter(WAYS))
    by_seed = [found for seed in SEEDS if (found := _measured(lines, scale, image_set, seed))]
    for way in WAYS if by_seed else ():
        row: dict[str, Cell] = {"statistics": way, "seeds": len(by_seed)}
        for test, of in TESTS:
            less = estimate([found[way, test, of] - found[usual, test, OWN] for found in by_seed]).as_difference()
            own = estimate([found[way, test, of] for found in by_seed]).text()
            row[test if of == OWN else f"{test}, {of}"] = own if (way, of) == (usual, OWN) else less
        made.rows.append(row)
    return made


def _measured(lines: Lines, scale: Scale, image_set: str, seed: int) -> dict[tuple[str, str, str], float]:
    """Of every way and test; empty if one isn't there."""
    found = {(way, *test): Measured(image_set, way, seed, *test) for way in WAYS for test in TESTS}
    if not all(measured.key(scale) in lines for measured in found.values()):
        return {}
    return {which: lines.known(measured.key(scale)) for which, measured in found.items()}


def _named(test: str) -> tuple[str, int]:
    name, severity = test.split()
    return name, int(severity)


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SHOWN)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path, help="Folder of decoded images; default: OUT/cache.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="Train nothing; show what is there.")
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    lines, scale = Lines(options.out / "noise.jsonl"), Scale(8, 1) if options.quick else Scale()
    for image_set in options.sets:
        if not options.table:
            splits = load_splits(image_set, SIZE, options.cache or options.out / "cache", options.data_root)
            splits, source = smaller(splits, 8) if options.quick else splits, load_lite0()
            for seed in SEEDS:
                for way in WAYS:
                    measure(lines, scale, Measured(image_set, way, seed), source, splits)
        print(to_markdown(table(lines, scale, image_set)), end="\n\n")


if __name__ == "__main__":
    main()
