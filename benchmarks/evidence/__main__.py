"""Converted networks against frozen BatchNorm, by the protocol of ``docs/evidence-protocol.md``.

    python -m benchmarks.evidence --out DIR [--sets fashion-mnist clipart] [--budgets short] [--arms ...] [--quick]
    python -m benchmarks.evidence --out DIR --device cuda --together [--budgets medium long --compile]

Every run is a line of ``DIR/runs.jsonl``; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.experiment import BUDGETS, QUICK_SCALE, Experiment, Scale
from benchmarks.evidence.runs import RunFile
from benchmarks.evidence.sets import SETS
from ilmconvert.data.sample_photographs import load_lite0

SIZE, QUICK_SIZE = 64, 32


def main(argv: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = _options()
    options = parser.parse_args(argv)
    if options.compile and not options.together:
        parser.error("--compile is of the step of --together; give both")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the processor
    file = RunFile(options.out / "runs.jsonl")
    scale = QUICK_SCALE if options.quick else Scale()
    source = load_lite0()
    for budget in options.budgets:
        for image_set in options.sets:
            experiment = Experiment(
                source,
                image_set,
                QUICK_SIZE if options.quick else SIZE,
                budget,
                file,
                options.cache or options.out / "cache",
                options.data_root,
                scale,
                options.device,
                options.together,
                options.compile,
            )
            chosen = {}
            for arm, settings in experiment.selections(options.arms):
                chosen[arm] = settings
                print(f"{image_set}, {budget}, {arm}: {settings}", flush=True)
            for run in experiment.finals(chosen):
                print(f"{image_set}, {budget}, {run.arm}, seed {run.seed}: {run.accuracy:.4f}", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of runs.jsonl.")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["fashion-mnist"])
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=["short"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--data-root", type=Path, help="Folder of the set's files, unless Debian's package has them.")
    parser.add_argument("--cache", type=Path, help="Folder of decoded images; default: OUT/cache.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--together", action="store_true", help="Train the missing runs of all arms at the same time.")
    parser.add_argument("--compile", action="store_true", help="Compile the step of --together, for long runs.")
    parser.add_argument("--quick", action="store_true", help="A few steps of everything, for the tests.")
    return parser


if __name__ == "__main__":
    main()
