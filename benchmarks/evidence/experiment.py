"""The experiment: selection and final runs of every arm, in the protocol's order, resumed from a file of runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.movement import movement
from benchmarks.evidence.runs import FINAL, SELECTION, Run, RunFile
from benchmarks.evidence.select import RATES, SEEDS, choose
from benchmarks.evidence.sets import Images, draw, load_splits, smaller
from benchmarks.evidence.shifts import shifted_sets
from benchmarks.evidence.train import Settings, Trained, accuracy, train

FINAL_SEEDS = tuple(range(8))


@dataclass(frozen=True)
class Budget:
    """Training images and epochs of a run."""

    images: int
    epochs: int


BUDGETS = {"short": Budget(400, 3), "medium": Budget(2_000, 5), "long": Budget(2_000, 25)}
QUICK = Budget(4, 1)


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes small: everything that only takes time."""

    rates: Sequence[float] = RATES
    final_seeds: Sequence[int] = FINAL_SEEDS
    shifted: int = 300
    test: int | None = None
    quick: bool = False


QUICK_SCALE = Scale(rates=(0.002, 0.005), final_seeds=(0, 1), shifted=2, test=8, quick=True)


class Experiment:
    """One set with one budget.

    Args:
        source: the pretrained network.
        file: where runs are kept; those that are there aren't made again.
        cache: for the tensors of sets.
    """

    def __init__(
        self,
        source: nn.Module,
        image_set: str,
        size: int,
        budget: str,
        file: RunFile,
        cache: Path,
        root: Path | None = None,
        scale: Scale | None = None,
    ) -> None:
        self._source, self._set, self._size, self._file, self._cache = source, image_set, size, file, cache
        self._budget = budget
        self.scale = scale or Scale()
        splits = load_splits(image_set, size, cache, root)
        self._splits = splits if self.scale.test is None else smaller(splits, self.scale.test)

    def selections(self, arms: Sequence[str]) -> Iterator[tuple[str, Settings]]:
        """Each arm's choice, after the runs that it takes."""
        for arm in arms:
            yield arm, choose(partial(self._score, arm), self.scale.rates, SEEDS)

    def finals(self, chosen: dict[str, Settings]) -> Iterator[Run]:
        """The final runs that are missing, seed by seed."""
        for seed in self.scale.final_seeds:
            for arm, settings in chosen.items():
                if self._find(arm, FINAL, settings, seed) is None:
                    yield self._final(arm, settings, seed)

    def _score(self, arm: str, settings: Settings, seed: int) -> float:
        found = self._find(arm, SELECTION, settings, seed)
        if found is None:
            begin = time.monotonic()
            trained = self._train(arm, settings, seed)
            found = self._run(arm, SELECTION, settings, seed, trained, self._splits.val, begin)
            self._file.add(found)
        return found.accuracy

    def _final(self, arm: str, settings: Settings, seed: int) -> Run:
        begin = time.monotonic()
        trained = self._train(arm, settings, seed)
        test = self._test_part(seed)
        some = test.subset(list(range(min(self.scale.shifted, len(test)))))
        shifted = {
            name: accuracy(trained.network, trained.prepare, images) for name, images in self._shifted(some, seed)
        }
        run = self._run(arm, FINAL, settings, seed, trained, test, begin, shifted, movement(trained, some))
        self._file.add(run)
        return run

    def _train(self, arm: str, settings: Settings, seed: int) -> Trained:
        budget = QUICK if self.scale.quick else BUDGETS[self._budget]
        images = draw(self._splits.train, budget.images, seed)
        return train(ARMS[arm], settings, self._source, images, self._splits.num_classes, budget.epochs, seed=seed)

    def _run(
        self,
        arm: str,
        phase: str,
        settings: Settings,
        seed: int,
        trained: Trained,
        images: Images,
        begin: float,
        shifted: dict[str, float] | None = None,
        moved: dict[str, float] | None = None,
    ) -> Run:
        return Run(
            self._set,
            self._size,
            self._budget,
            arm,
            phase,
            seed,
            settings.rate,
            settings.distill,
            settings.norm_scale,
            accuracy(trained.network, trained.prepare, images),
            None if trained.diverged else trained.loss,
            round(time.monotonic() - begin, 1),
            shifted or {},
            moved or {},
        )

    def _find(self, arm: str, phase: str, settings: Settings, seed: int) -> Run | None:
        key = (self._set, self._size, self._budget, arm, phase, seed)
        for run in self._file.runs:
            if (run.image_set, run.size, run.budget, run.arm, run.phase, run.seed) == key and run.settings == settings:
                return run
        return None

    def _test_part(self, seed: int) -> Images:
        """The seed's own test images: an equal part for each seed, all of them together the test set."""
        order = torch.randperm(len(self._splits.test), generator=torch.Generator().manual_seed(0))
        return self._splits.test.subset(order.chunk(len(FINAL_SEEDS))[seed])

    def _shifted(self, some: Images, seed: int) -> list[tuple[str, Images]]:
        """Made once for all arms of a seed."""
        file = self._cache / f"shifted-{self._set}-{self._size}-{seed}-{len(some)}.pt"
        if not file.exists():
            made = {name: (images.pixels, images.labels) for name, images in shifted_sets(some, seed)}
            torch.save(made, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return [(name, Images(*parts)) for name, parts in torch.load(file, weights_only=True).items()]
