"""Transfer at batch size 2: fine-tuned conversions against BatchNorm and GroupNorm, all with the same budget.

``python -m benchmarks.finetune --jobs 2 --out DIR`` fine-tunes the real EfficientNet-Lite0 on the image sets of
:mod:`benchmarks.finetune_data`, once per seed, with every recipe and every baseline, and prints mean and standard
error of the accuracy after the last epoch. ``DIR/finetune.jsonl`` gets a line a finished run; a run that is there is
not repeated, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.finetune_arms import BUDGET, FROZEN, Task, ablations, arms, chosen_arms
from benchmarks.finetune_data import SETS, write_set
from benchmarks.finetune_tables import Run, accuracy_table, against_table, goals
from benchmarks.report import environment, publish
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.finetune import finetune
from ilmconvert.surgery.group_norm_baseline import BASELINES

# About an hour on two cores.
DEFAULT_SETS = ["digits", "photographs", "photographs-haze"]


def train(task: Task) -> list[Run]:
    """Fine-tunes the network of one arm, and its baselines."""
    torch.set_num_threads(1)  # two processes of one thread do more than one of two
    arm = task.arm
    with tempfile.TemporaryDirectory() as scratch:
        data = write_set(task.image_set, task.seed, Path(scratch), quick=task.quick)
        result = finetune(
            load_lite0(),
            data,
            task.recipe(),
            output=Path(scratch) / "run",
            num_classes=len(list((data / "train").iterdir())),
            log_with=(),
            baselines=arm.baselines,
        )
        summaries = {arm.name: result.summary}
        for baseline in arm.baselines:
            text = (result.output / "baselines" / baseline / "summary.json").read_text(encoding="utf-8")
            summaries[baseline] = json.loads(text)
    digest = task.settings()
    return [
        Run(task.image_set, name, task.seed, summary["last"]["val_top1"], summary["seconds"], digest)
        for name, summary in summaries.items()
    ]


def measure(tasks: Sequence[Task], jobs: int, path: Path | None) -> list[Run]:
    """The runs of all tasks; those in the file at ``path`` are taken from there, the others are added to it."""
    wanted = {key for task in tasks for key in task.run_keys()}
    runs = [r for r in (read(path) if path else []) if r.key in wanted]
    there = {r.key for r in runs}
    left = [task for task in tasks if not task.run_keys() <= there]
    if not left:
        return runs
    # Forking a process in which torch has computed may deadlock.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        for index, done in enumerate(as_completed([pool.submit(train, task) for task in left]), 1):
            new = [r for r in done.result() if r.key not in there]
            runs += new
            if path:
                with path.open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(asdict(r)) + "\n" for r in new)
            shown = ", ".join(f"{r.arm} {r.accuracy:.3f} ({r.seconds:.0f} s)" for r in new)
            print(f"{index}/{len(left)} {new[0].image_set}, seed {new[0].seed}: {shown}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return runs


def read(path: Path) -> list[Run]:
    """The finished runs; a last line that was cut off is taken out of the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        path.write_text(complete, encoding="utf-8")
    return [Run(**json.loads(line)) for line in complete.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=DEFAULT_SETS)
    names = [*BASELINES, *arms(), *ablations()]
    parser.add_argument("--arms", nargs="+", choices=names, help="all but the ablations of anneal, unless given")
    parser.add_argument("--lr", type=float, help=f"learning rate of all arms, {BUDGET['lr']:g} unless given")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="processes side by side")
    parser.add_argument("--quick", action="store_true", help="two images a class, one epoch: to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for finetune.jsonl, .md and .json")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "finetune.jsonl" if arguments.out else None
    started = time.monotonic()
    # Seed by seed, so that a benchmark that is stopped early has something of everything.
    tasks = [
        Task(arm, name, seed, arguments.quick, arguments.lr)
        for seed in range(arguments.seeds)
        for name in arguments.sets
        for arm in chosen_arms(arguments.arms)
    ]
    runs = measure(tasks, arguments.jobs, path)
    where = {**environment("cpu"), "threads": 1, "processes": arguments.jobs, "runs": len(runs)}
    where["minutes"] = round((time.monotonic() - started) / 60)
    tables = [
        accuracy_table(runs),
        goals(runs),
        against_table(runs, FROZEN, "Conversions less BatchNorm with frozen statistics, seed by seed"),
    ]
    publish("finetune", tables, where, arguments.out)


if __name__ == "__main__":
    main()
