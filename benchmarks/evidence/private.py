"""Differential privacy: the head alone, frozen BatchNorm, converted norms and swapped GroupNorm at the same budget.

    python -m benchmarks.evidence.private --out DIR [--epsilons 8 1 3] [--from-stage 6] [--quick]
    python -m benchmarks.evidence.private --out benchmarks/evidence/results --table

By the protocol of ``docs/evidence-protocol.md``. Runs are lines of ``DIR/private.jsonl``; the same command goes on
where it was stopped. ``--table`` prints what is there and trains nothing.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from benchmarks.evidence.cut import LAST_STAGE, QUICK, Parts, accuracy, opened, run_options
from benchmarks.evidence.dp_sgd import Scale, Settings, pooled, train_privately
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.private_arms import ARMS, HEAD, build
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.evaluation.estimate import estimate

EPSILONS = (8.0, 1.0, 3.0)
RATES, SHARES = (0.1, 0.3, 1.0, 3.0), (0.3, 0.1, 0.03)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2)

Found = Mapping[str, Mapping[int, float]]


class Runs:
    """Runs of every arm at every epsilon, each made once."""

    def __init__(self, lines: Lines, stage: int, scale: Scale, source: nn.Module | None, data: Parts | None) -> None:
        self._lines, self._stage, self._scale, self._source, self._data = lines, stage, scale, source, data

    def chosen(self, arm: str, epsilon: float) -> Settings:
        """What is best on the validation images."""
        if arm == HEAD:
            candidates = [Settings(rate) for rate in RATES]
        else:
            candidates = [Settings(self.chosen(HEAD, epsilon).rate, share) for share in SHARES]
        return max(candidates, key=lambda settings: self.value(arm, epsilon, settings, SELECTION_SEED, "val"))

    def value(self, arm: str, epsilon: float, settings: Settings, seed: int, part: str) -> float:
        """The accuracy of a run, which is made if there is none yet."""
        key: dict[str, str | int | float] = {
            "arm": arm,
            "epsilon": epsilon,
            "rate": settings.rate,
            "share": settings.share,
            "seed": seed,
            "part": part,
            "stage": self._stage,
            "images": self._scale.images,
            "epochs": self._scale.epochs,
        }
        return self._lines.value(key, lambda: self._trained(arm, epsilon, settings, seed, part))

    def _trained(self, arm: str, epsilon: float, settings: Settings, seed: int, part: str) -> float:
        if self._source is None or self._data is None:
            raise MissingLine
        behind = build(arm, copy.deepcopy(self._source), self._stage, self._data.num_classes, seed)
        trained, images = (behind, self._data.train) if arm != HEAD else pooled(behind, self._data.train)
        used = train_privately(trained, images, settings, epsilon, self._scale, seed)
        assert used <= epsilon, f"{arm} spent {used} of {epsilon}"
        return accuracy(behind, self._data.val if part == "val" else self._data.test)

    def results(self, epsilon: float, seeds: Sequence[int], arms: Sequence[str]) -> tuple[Found, dict[str, Settings]]:
        """Test accuracy by arm and seed, and the settings; without what isn't there and can't be made."""
        found: dict[str, dict[int, float]] = {}
        settings: dict[str, Settings] = {}
        for arm in arms:
            try:
                settings[arm] = self.chosen(arm, epsilon)
                for seed in seeds:
                    value = self.value(arm, epsilon, settings[arm], seed, "test")
                    found.setdefault(arm, {})[seed] = value
            except MissingLine:
                continue
        return found, settings


def table(found: Found, settings: Mapping[str, Settings], epsilon: float, stage: int) -> Table:
    """A row for each arm."""
    where = "the last stage" if stage == LAST_STAGE else f"stages {stage} and on"
    made = Table(f"Epsilon {epsilon:g}: test accuracy, 95 % intervals over seeds; what trains is of {where}")
    base = found.get(HEAD, {})
    for arm, by_seed in found.items():
        rate = f"{settings[arm].rate:g}" + (" (edge)" if settings[arm].rate in (RATES[0], RATES[-1]) else "")
        less = estimate([value - base[seed] for seed, value in by_seed.items() if seed in base])
        row: dict[str, Cell] = {
            "what trains": ARMS[arm],
            "head's rate": rate,
            "rest": "-" if arm == HEAD else f"x{settings[arm].share:g}",
            "seeds": len(by_seed),
            "accuracy": estimate(list(by_seed.values())).text(),
            "less head alone (standard errors)": "-" if arm == HEAD else less.as_difference(),
        }
        made.rows.append(row)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run it, and print a table for each epsilon."""
    options = _options().parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # Opacus's, on hooks and on its random numbers
    scale, seeds = Scale(), FINAL_SEEDS
    if options.quick:
        # whole batches: Opacus takes seconds to reckon the noise of others
        scale, seeds = Scale(images=QUICK, tests=QUICK, batch_size=QUICK, epochs=2), FINAL_SEEDS[:2]
    source, data = opened(options, scale.images, scale.tests)
    runs = Runs(Lines(options.out / "private.jsonl"), options.from_stage, scale, source, data)
    for epsilon in options.epsilons:
        found, settings = runs.results(epsilon, seeds, options.arms)
        if found:
            print(to_markdown(table(found, settings, epsilon, options.from_stage)), end="\n\n", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = run_options(__doc__, "private.jsonl", ARMS)
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    return parser


if __name__ == "__main__":
    main()
