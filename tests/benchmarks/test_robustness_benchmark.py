"""The programs that print the numbers of docs/robustness.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import robust_probe, robustness
from benchmarks.robustness_tables import mean_table, tables_of
from ilmconvert.evaluation.robustness import CLEAN, Condition


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    names = {
        "test": ["000-foolbox-imagenet_00_243", "001-foolbox-imagenet_01_559", "002-b"],
        "calibration": ["000-c", "001-d", "002-e"],
    }
    for part, stems in names.items():
        (tmp_path / part).mkdir()
        for i, stem in enumerate(stems):
            pixels = generator.integers(0, 80 * (i + 1), (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{stem}.png")
    return tmp_path


def test_every_network_is_measured_once_and_the_tables_are_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    options = ["--size", "32", "--corruptions", "contrast", "fog", "--severities", "5", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["robustness", str(folder), *options])
    robustness.main()
    first = capsys.readouterr()
    tables = {t["title"]: t["rows"] for t in json.loads((out / "robustness.json").read_text())["tables"]}
    mean, each, accuracy = (
        next(rows for t, rows in tables.items() if part in t) for part in ("clean image", "by", "label")
    )
    plain = ["clean", "contrast x0.25", "contrast x0.1", "contrast x4", "brightness +1"]
    assert [row["condition"] for row in mean] == [*plain, "contrast", "fog"]
    assert [row["severity"] for row in each] == [None] * 5 + [1, 5, 1, 5]
    assert mean[0]["source"] == "1.000 ± 0.000"
    assert each[0].keys() >= {"source", "input standardised", "ILM-LN robust", "ILM-GN robust"}
    assert len(accuracy) == 7
    assert (out / "robustness.svg").stat().st_size > 1000
    robustness.main()
    again = capsys.readouterr()
    assert "fog 5" in first.err
    assert "fog" not in again.err, "measured twice"
    assert again.out.partition("###")[2] == first.out.partition("###")[2]


def test_a_image_counts_once_in_the_mean_over_severities() -> None:
    hits = {"fog": {"source": [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]}}
    (row,) = mean_table("", hits).rows
    # images of 1 and 1/2: standard error 1/4
    assert row["source"] == "0.750 ± 0.490"


def test_losses_are_those_of_bounded_networks_in_standard_errors() -> None:
    expected = torch.zeros(8, dtype=torch.long)
    worse = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0])
    found = {"source": expected, "input standardised": worse, "ILM-LN robust": worse}
    tables, _ = tables_of({Condition(CLEAN): found}, [None] * 8)
    (row,) = next(t for t in tables if "losses" in t.title).rows
    assert (row["network"], row["loss"]) == ("ILM-LN robust", 0.25)
    assert row["standard errors"] == pytest.approx(0.25 / (np.std(worse.numpy(), ddof=1) / 8**0.5))


def test_the_probe_compares_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--seeds", "1", "--sets", "digits-noise", "--size", "32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["robust_probe", *options])
    robust_probe.main()
    ((row,),) = (t["rows"] for t in json.loads((tmp_path / "robust_probe.json").read_text())["tables"])
    assert row["set"] == "digits-noise"
    before, after = (float(row[k]) for k in ("source, frozen", "ILM-LN robust, frozen"))
    assert 0 <= before <= 1
    assert float(row["difference"]) == pytest.approx(after - before, abs=0.002)
