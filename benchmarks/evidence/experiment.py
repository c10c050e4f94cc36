"""The experiment: selection and final runs of every arm, in the protocol's order, resumed from a file of runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.augmented import AUGMENTED, augmented
from benchmarks.evidence.images import Images, draw, share, smaller
from benchmarks.evidence.movement import movement
from benchmarks.evidence.runs import FINAL, SELECTION, Run, RunFile
from benchmarks.evidence.select import RATES, SEEDS, choose, first_round, second_round
from benchmarks.evidence.sets import load_splits
from benchmarks.evidence.shifts import shifted_sets
from benchmarks.evidence.together import Task, Together, train_all
from benchmarks.evidence.train import Settings, Trained, accuracies, accuracy, train
from ilmconvert.errors import ILMConvertError

FINAL_SEEDS = tuple(range(8))

Wanted = tuple[str, Settings, int]  # arm, settings and seed of a run


@dataclass(frozen=True)
class Budget:
    """Training images and epochs of a run, and the budget whose settings it takes, if it doesn't choose its own."""

    images: int
    epochs: int
    chosen_in: str | None = None


BUDGETS = {"short": Budget(400, 3), "medium": Budget(2_000, 5), "long": Budget(2_000, 15, chosen_in="medium")}
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
        together: train all runs that are missing at the same time, for which a GPU is made.
        compiled: compile their step, which takes minutes and pays in budgets above the short one.
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
        device: str = "cpu",
        together: bool = False,
        compiled: bool = False,
    ) -> None:
        self._set, self._size, self._file, self._cache = image_set, size, file, cache
        self._budget, self._device = budget, torch.device(device)
        self._together, self._compiled = together, compiled
        self._source = source.to(self._device)
        self.scale = scale or Scale()
        splits = load_splits(image_set, size, cache, root)
        self._splits = splits if self.scale.test is None else smaller(splits, self.scale.test)

    def selections(self, arms: Sequence[str]) -> Iterator[tuple[str, Settings]]:
        """Each arm's choice, after the runs that it takes."""
        if self._of_budget.chosen_in:
            yield from ((arm, choose(partial(self._known_score, arm), self.scale.rates, SEEDS)) for arm in arms)
            return
        if self._together:
            first = first_round(self.scale.rates, SEEDS)
            self._train_together(SELECTION, [(arm, *pair) for arm in arms for pair in first])
            second = {arm: second_round(partial(self._score, arm), self.scale.rates, SEEDS) for arm in arms}
            self._train_together(SELECTION, [(arm, *pair) for arm in arms for pair in second[arm]])
        for arm in arms:
            yield arm, choose(partial(self._score, arm), self.scale.rates, SEEDS)

    def finals(self, chosen: dict[str, Settings]) -> Iterator[Run]:
        """The final runs that are missing, seed by seed."""
        wanted = [(arm, settings, seed) for seed in self.scale.final_seeds for arm, settings in chosen.items()]
        if self._together:
            yield from self._train_together(FINAL, wanted)
        for arm, settings, seed in wanted:
            if self._find(arm, FINAL, settings, seed) is None:
                yield self._make(FINAL, arm, settings, seed)

    def _score(self, arm: str, settings: Settings, seed: int) -> float:
        found = self._find(arm, SELECTION, settings, seed) or self._make(SELECTION, arm, settings, seed)
        return found.accuracy

    def _known_score(self, arm: str, settings: Settings, seed: int) -> float:
        """Of the budget that this one takes its settings from."""
        budget = BUDGETS[self._budget].chosen_in
        found = self._find(arm, SELECTION, settings, seed, budget)
        if found is None:
            raise ILMConvertError(
                f"{self._budget} takes the settings of {budget}, which has no runs of {arm}; run it first"
            )
        return found.accuracy

    def _make(self, phase: str, arm: str, settings: Settings, seed: int) -> Run:
        begin = time.monotonic()
        images, epochs = self._training_images(seed), self._epochs
        trained = train(ARMS[arm], settings, self._source, images, self._splits.num_classes, epochs, seed=seed)
        return self._tested(phase, arm, settings, seed, trained, time.monotonic() - begin)

    def _train_together(self, phase: str, wanted: Sequence[Wanted]) -> list[Run]:
        """The missing ones of these runs, those of all arms side by side."""
        begin = time.monotonic()
        missing = [run for run in wanted if self._find(run[0], phase, *run[1:]) is None]
        images = {seed: self._training_images(seed) for _, _, seed in missing}
        tasks = {arm: [Task(s, seed, images[seed]) for a, s, seed in missing if a == arm] for arm, _, _ in missing}
        groups = {arm: self._group(arm, found) for arm, found in tasks.items()}
        if groups:
            train_all(list(groups.values()))
        each = (time.monotonic() - begin) / max(len(missing), 1)
        return [
            self._tested(phase, arm, task.settings, task.seed, trained, each)
            for arm, group in groups.items()
            for task, trained in zip(tasks[arm], group.results(), strict=True)
        ]

    def _group(self, arm: str, tasks: Sequence[Task]) -> Together:
        classes = self._splits.num_classes
        return Together(ARMS[arm], tasks, self._source, classes, self._epochs, compiled=self._compiled)

    def _tested(self, phase: str, arm: str, settings: Settings, seed: int, trained: Trained, seconds: float) -> Run:
        """A trained network as a line of the file."""
        final = phase == FINAL
        images = (share(self._splits.test, seed, len(FINAL_SEEDS)) if final else self._splits.val).to(self._device)
        shifted, moved = {}, {}
        if final:
            some = images.subset(list(range(min(self.scale.shifted, len(images)))))
            shifted = accuracies(trained.network, trained.prepare, self._shifted(some, seed))
            moved = movement(trained, some)
        run = Run(
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
            round(seconds, 1),
            shifted,
            moved,
            str(self._device),
        )
        self._file.add(run)
        return run

    @property
    def _of_budget(self) -> Budget:
        whole = BUDGETS[self._budget]
        return replace(whole, images=QUICK.images, epochs=QUICK.epochs) if self.scale.quick else whole

    @property
    def _epochs(self) -> int:
        """Of augmented images one, in which every image is seen in as many views as the budget has epochs."""
        return 1 if self._set in AUGMENTED else self._of_budget.epochs

    def _training_images(self, seed: int) -> Images:
        drawn = draw(self._splits.train, self._of_budget.images, seed)
        if self._set in AUGMENTED:
            drawn = augmented(drawn, self._of_budget.epochs, seed)
        return drawn.to(self._device)

    def _find(self, arm: str, phase: str, settings: Settings, seed: int, budget: str | None = None) -> Run | None:
        key = (self._set, self._size, budget or self._budget, arm, phase, seed)
        for run in self._file.runs:
            if (run.image_set, run.size, run.budget, run.arm, run.phase, run.seed) == key and run.settings == settings:
                return run
        return None

    def _shifted(self, some: Images, seed: int) -> list[tuple[str, Images]]:
        """Made once for all arms of a seed, on the processor."""
        file = self._cache / f"shifted-{self._set}-{self._size}-{seed}-{len(some)}.pt"
        if not file.exists():
            made = {name: (pixels, some.labels.cpu()) for name, pixels in shifted_sets(some.pixels.cpu(), seed)}
            torch.save(made, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return [(name, Images(*parts).to(self._device)) for name, parts in torch.load(file, weights_only=True).items()]
