"""Damage valid checkpoints and load them; prints counts, and fails at the first case that ends as none may."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.fuzz.cases import Broken, Outcome, Valid, summary, try_case, try_file, valid_files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first case; each is drawn from its own number alone")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failure.safetensors"), help="a broken case goes here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(range(arguments.first, arguments.first + arguments.cases), Path(folder), arguments.keep)))


def run(seeds: range, folder: Path, keep: Path) -> dict[str, object]:
    """All cases; the result is what :func:`tests.fuzz.cases.summary` tells."""
    valid = warm(folder)
    outcomes: list[Outcome] = []
    shown = time.monotonic()
    for seed in seeds:
        try:
            outcomes.append(try_case(valid[seed % len(valid)], seed, folder))
        except Broken as broken:
            shutil.copyfile(broken.file, keep)
            sys.exit(f"case {seed} of {valid[seed % len(valid)].name}: {broken.what}; see {keep}")
        if sys.stderr.isatty() and time.monotonic() > shown + 1:
            shown = time.monotonic()
            print(f"\r{len(outcomes)}", end="", file=sys.stderr)
    return summary(outcomes)


def warm(folder: Path) -> list[Valid]:
    """Valid files, each loaded once: what is imported late is then there."""
    valid = valid_files(folder)
    for file in valid:
        assert try_file(folder / f"{file.name}.safetensors", file.into).kind == "loaded"
    return valid


if __name__ == "__main__":
    main()
