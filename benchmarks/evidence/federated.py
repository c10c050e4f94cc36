"""Federated averaging of clients with different data: BatchNorm, frozen or not, swapped GroupNorm, converted norms.

    python -m benchmarks.evidence.federated --out DIR [--batch-sizes 2 8] [--from-stage 6] [--quick]
    python -m benchmarks.evidence.federated --out benchmarks/evidence/results --table

By the protocol of ``docs/evidence-protocol.md``. Runs are lines of ``DIR/federated.jsonl``; the same command goes on
where it was stopped. ``--table`` prints what is there and trains nothing.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.evidence.cut import QUICK, Parts, accuracy, cut, opened, out_of_place, run_options
from benchmarks.evidence.fed_avg import FROZEN, TRAINED, train
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert import convert
from ilmconvert.evaluation.estimate import estimate
from ilmconvert.finetune.networks import replace_head
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

RATES = (0.01, 0.03, 0.1)
SELECTION_SEED, FINAL_SEEDS = 1000, (0, 1, 2)
IMAGES, TESTS = 2_000, 2_000

Found = Mapping[str, Mapping[int, float]]

#: Titles, and what becomes of the stages that train.
ARMS: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    FROZEN: ("frozen BN", copy.deepcopy),
    TRAINED: ("BN in training", copy.deepcopy),
    "group-norm": ("GroupNorm swapped", lambda network: group_norm_baseline(network, copy_affine=True)),
    "ilm-gn": ("ILM-GN, exact start", convert),
}


@dataclass(frozen=True)
class Scale:
    """The clients' images, all together, and the rounds."""

    images: int = 600
    rounds: int = 5


class Runs:
    """Runs of every arm at every batch size, each made once."""

    def __init__(self, lines: Lines, stage: int, scale: Scale, source: nn.Module | None, data: Parts | None) -> None:
        self._lines, self._stage, self._scale, self._source, self._data = lines, stage, scale, source, data

    def value(self, arm: str, batch_size: int, rate: float, seed: int, part: str) -> float:
        """The accuracy of a run, which is made if there is none yet."""
        key: dict[str, str | int | float] = {
            "arm": arm,
            "batch": batch_size,
            "rate": rate,
            "seed": seed,
            "part": part,
            "stage": self._stage,
            "images": self._scale.images,
            "rounds": self._scale.rounds,
        }
        return self._lines.value(key, lambda: self._trained(arm, batch_size, rate, seed, part))

    def _trained(self, arm: str, batch_size: int, rate: float, seed: int, part: str) -> float:
        if self._source is None or self._data is None:
            raise MissingLine
        source = copy.deepcopy(self._source)
        replace_head(source, self._data.num_classes, seed)
        behind = out_of_place(ARMS[arm][1](cut(source.eval(), self._stage)[1]))
        images = self._data.train.subset(torch.arange(self._scale.images))
        train(arm, behind, images, rate, batch_size, self._scale.rounds, seed)
        return accuracy(behind, self._data.val if part == "val" else self._data.test)

    def results(self, batch_size: int, seeds: Sequence[int], arms: Sequence[str]) -> tuple[Found, dict[str, float]]:
        """Test accuracy by arm and seed, and the rates; without what isn't there and can't be made."""
        found: dict[str, dict[int, float]] = {}
        rates: dict[str, float] = {}
        for arm in arms:
            try:
                scores = {rate: self.value(arm, batch_size, rate, SELECTION_SEED, "val") for rate in RATES}
                rates[arm] = max(scores, key=lambda rate: scores[rate])
                for seed in seeds:
                    value = self.value(arm, batch_size, rates[arm], seed, "test")
                    found.setdefault(arm, {})[seed] = value
            except MissingLine:
                continue
        return found, rates


def table(found: Found, rates: Mapping[str, float], batch_size: int) -> Table:
    """A row for each arm."""
    made = Table(f"Batch size {batch_size}: test accuracy after the last round, 95 % intervals over seeds")
    base = found.get(FROZEN, {})
    for arm, by_seed in found.items():
        less = [value - base[seed] for seed, value in by_seed.items() if seed in base]
        row: dict[str, Cell] = {
            "network": ARMS[arm][0],
            "rate": f"{rates[arm]:g}" + (" (edge)" if rates[arm] in (RATES[0], RATES[-1]) else ""),
            "seeds": len(by_seed),
            "accuracy": estimate(list(by_seed.values())).text(),
            "less frozen BN (standard errors)": "-" if arm == FROZEN or not less else estimate(less).as_difference(),
        }
        made.rows.append(row)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run it, and print a table for each batch size."""
    options = _options().parse_args(argv)
    torch.set_num_threads(options.threads)
    scale, seeds, images, tests = Scale(), FINAL_SEEDS, IMAGES, TESTS
    if options.quick:
        scale, seeds, images, tests = Scale(images=QUICK, rounds=1), FINAL_SEEDS[:2], QUICK, QUICK
    source, data = opened(options, images, tests)
    runs = Runs(Lines(options.out / "federated.jsonl"), options.from_stage, scale, source, data)
    for batch_size in options.batch_sizes:
        found, rates = runs.results(batch_size, seeds, options.arms)
        if found:
            print(to_markdown(table(found, rates, batch_size)), end="\n\n", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = run_options(__doc__, "federated.jsonl", ARMS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8])
    return parser


if __name__ == "__main__":
    main()
