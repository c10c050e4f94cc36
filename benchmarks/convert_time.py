"""Seconds to convert, save and load a model, against building it.

``python -m benchmarks.convert_time [MODEL]`` prints a Markdown table, ``--json`` the same as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import ilmconvert
from benchmarks.timing import Timing, interleaved
from ilmconvert.models.create import create_model

BUILD, COPY, IN_PLACE = "build (random weights)", "copy.deepcopy", "convert, in place"


def measure(name: str, to: str, repeats: int, folder: Path) -> dict[str, Timing]:
    """Times every step of one model's conversion; files are written to ``folder``."""
    source = create_model(name, weights="none")
    converted = ilmconvert.convert(source, to)
    path, scratch, plain = (folder / f"{part}.safetensors" for part in ("model", "scratch", "plain"))
    ilmconvert.save(converted, path)
    save_file(source.state_dict(), plain)
    # Each turn of the conversion in place needs an unconverted model of its own.
    fresh: list[torch.nn.Module] = []

    def load_source() -> torch.nn.Module:
        model = create_model(name, weights="none")
        model.load_state_dict(load_file(plain))
        return model

    candidates: dict[str, Callable[[], object]] = {
        BUILD: lambda: create_model(name, weights="none"),
        COPY: lambda: copy.deepcopy(source),
        "convert": lambda: ilmconvert.convert(source, to),
        IN_PLACE: lambda: ilmconvert.convert(fresh.pop(), to, inplace=True),
        "save": lambda: ilmconvert.save(converted, scratch),
        "load": lambda: ilmconvert.load(path),
        "the source by hand: build, load_file": load_source,
    }
    return interleaved(candidates, repeats, before={IN_PLACE: lambda: fresh.append(copy.deepcopy(source))})


def to_markdown(title: str, timings: dict[str, Timing]) -> str:
    build, copied = timings[BUILD].median, timings[COPY].median
    lines = [
        f"| {title} | median, ms | fastest to slowest, ms | against build | against deepcopy |",
        "|---|---|---|---|---|",
    ]
    for name, timing in timings.items():
        spread = f"{timing.fastest * 1e3:.1f} to {timing.slowest * 1e3:.1f}"
        ratios = f"{timing.median / build:.2f} | {timing.median / copied:.2f}"
        lines.append(f"| {name} | {timing.median * 1e3:.1f} | {spread} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert_time", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet50", help="a model name; resnet50 unless given")
    parser.add_argument("--to", default="ilm_gn", choices=("ilm_gn", "ilm_ln", "ilm_in"))
    parser.add_argument("--repeats", type=int, default=9, help="turns counted for each step")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Random weights cost what trained ones do.
        warnings.filterwarnings("ignore", message=".*never trained")
        timings = measure(arguments.model, arguments.to, arguments.repeats, Path(folder))
    if arguments.json:
        steps = {name: asdict(timing) for name, timing in timings.items()}
        print(json.dumps({"model": arguments.model, "to": arguments.to, "seconds": steps}, indent=2))
    else:
        title = f"{arguments.model} to {arguments.to}, {torch.get_num_threads()} threads"
        print(to_markdown(title, timings))


if __name__ == "__main__":
    main()
