"""The programs in benchmarks/ run and print what they announce."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_convert_time_measures_every_step() -> None:
    command = [sys.executable, "-m", "benchmarks.convert_time", "test_resnet", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["model"] == "test_resnet"
    assert {"copy.deepcopy", "convert", "convert, in place", "save", "load"} <= measured["seconds"].keys()
    for seconds in measured["seconds"].values():
        assert 0 < seconds["fastest"] <= seconds["median"] <= seconds["slowest"]


def run_quick(program: str, folder: Path, *options: str) -> dict[str, list[dict[str, object]]]:
    """The rows of each table that ``program --quick`` wrote, by title; they are the ones that it printed."""
    command = [sys.executable, "-m", f"benchmarks.{program}", "--quick", "--repeats", "1", "--out", str(folder)]
    # Threads that wait for one another on a busy machine would take longer than the work.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / f"{program}.md").read_text()
    tables = json.loads((folder / f"{program}.json").read_text())["tables"]
    for table in tables:
        assert f"### {table['title']}" in done.stdout
    return {table["title"]: table["rows"] for table in tables}


@pytest.mark.slow
def test_layer_times_every_shape_and_format(tmp_path: Path) -> None:
    tables = run_quick("layer", tmp_path, "--dtype", "float32", "--shape", "1x64x4x4")
    for title in ("Forward, no_grad", "Forward and backward"):
        assert [row["format"] for row in tables[title]] == ["contiguous", "channels_last"]
        assert all(row["to GroupNorm"] > 0 for row in tables[title])
    saved = tables["Memory of a training step, MB"][0]
    # x alone is 4 KiB; GroupNorm keeps it and its two (1, 32) statistics.
    assert saved["saved, GroupNorm"] == (1 * 64 * 16 + 2 * 32) * 4 / 2**20
    assert saved["saved"] >= 1 * 64 * 16 * 4 / 2**20


@pytest.mark.slow
def test_model_times_networks_conversion_and_import(tmp_path: Path) -> None:
    tables = run_quick("model", tmp_path)
    assert {"Inference, eager, float32", "Training step, eager, float32", "Import"} <= tables.keys()
    steps = {row["step"]: row["ms"] for row in tables["Conversion and loading, test_resnet"]}
    assert steps.keys() >= {"copy.deepcopy", "convert", "load", "build + load_file"}
    assert all(milliseconds > 0 for milliseconds in steps.values())


@pytest.mark.slow
def test_deploy_exports_counts_and_times(tmp_path: Path) -> None:
    tables = run_quick("deploy", tmp_path, "--aoti")
    nodes = {row["network"]: row["nodes"] for row in tables["Export, test_resnet"]}
    assert nodes["BatchNorm"] < nodes["GroupNorm"] < nodes["converted"]
    # without export a Reshape more for each of fifteen layers, and for the head
    assert 0 <= nodes["the model itself"] - nodes["converted"] <= 16
    for title in ("Export, test_resnet", "Compilation, test_resnet"):
        assert all(row["error"] <= 1e-4 for row in tables[title])
    assert {row["network"] for row in tables["AOTInductor, test_resnet"]} == {"converted", "GroupNorm", "BatchNorm"}
    assert len(tables["The layer on small maps, forward"]) == 4
