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
from pathlib import Path

import torch
from torch import nn

from benchmarks.evidence.cut import LAST_STAGE, Parts, accuracy, parts
from benchmarks.evidence.dp_sgd import Scale, Settings, pooled, train_privately
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.paired import estimate
from benchmarks.evidence.private_arms import ARMS, HEAD, build
from benchmarks.evidence.sets import load_splits, smaller
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.data.sample_photographs import load_lite0

EPSILONS = (8.0, 1.0, 3.0)
RATES, SHARES = (0.1, 0.3, 1.0, 3.0), (0.3, 0.1, 0.03)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2)
SIZE = 64

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
        errors = "" if less.in_errors is None else f" ({less.in_errors:+.1f})"
        row: dict[str, Cell] = {
            "what trains": ARMS[arm],
            "head's rate": rate,
            "rest": "-" if arm == HEAD else f"x{settings[arm].share:g}",
            "seeds": len(by_seed),
            "accuracy": estimate(list(by_seed.values())).text(),
            "less head alone (standard errors)": "-" if arm == HEAD else less.text("+") + errors,
        }
        made.rows.append(row)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run it, and print a table for each epsilon."""
    options = _options().parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # Opacus's, on hooks and on its random numbers
    scale, seeds = Scale(), FINAL_SEEDS
    source: nn.Module | None = None
    data: Parts | None = None
    if options.quick:
        scale, seeds = Scale(images=16, tests=16, batch_size=8, epochs=1), FINAL_SEEDS[:2]
    if not options.table:
        folder = options.cache or options.out / "cache"
        splits = load_splits("fashion-mnist", SIZE, folder, options.data_root)
        source = load_lite0()
        splits = smaller(splits, 16) if options.quick else splits
        data = parts(source, options.from_stage, splits, scale.images, scale.tests, folder)
    runs = Runs(Lines(options.out / "private.jsonl"), options.from_stage, scale, source, data)
    for epsilon in options.epsilons:
        found, settings = runs.results(epsilon, seeds, options.arms)
        if found:
            print(to_markdown(table(found, settings, epsilon, options.from_stage)), end="\n\n", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of private.jsonl.")
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--from-stage", type=int, default=LAST_STAGE, help="The first stage of which anything trains.")
    parser.add_argument("--table", action="store_true", help="Print what has been measured; train nothing.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path, help="Folder of decoded images and features; default: OUT/cache.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    return parser


if __name__ == "__main__":
    main()
