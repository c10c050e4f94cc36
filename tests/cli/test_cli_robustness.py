"""``convert --robust`` and ``robustness``, as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ilmconvert import load
from ilmconvert.calibration.bound import DEFAULT_RANGE
from ilmconvert.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(6):
        pixels = generator.integers(0, 40 * (i + 1), (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def run(*arguments: object) -> dict[str, object]:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("with_images", [False, True])
def test_convert_and_compare(folder: Path, with_images: bool) -> None:
    file, images = folder / "m.safetensors", folder / "images"
    data = ("--data", images) if with_images else ()
    made = run("convert", "test_resnet", "--weights", "none", "--robust", *data, "-o", file, "--json")
    limits = load(file).get_submodule(made["bounded"]["layer"]).restore_range
    assert (limits == DEFAULT_RANGE) != with_images
    assert made["error"]["relative_error"] < 1e-3  # measured before the bound
    plot = folder / "plot.png"
    found = run("robustness", file, "--data", images, "--severity", 3, "--input-size", 32, "--plot", plot, "--json")
    clean = [r for r in found["rows"] if r["condition"] == "clean"]
    assert [r["network"] for r in clean] == ["source", "bounded", "input standardised"]
    assert clean[0]["agreement"] == 1
    low, high = clean[0]["interval"]
    assert low < 1 == pytest.approx(high)
    assert plot.stat().st_size > 1000


def test_the_table_has_intervals_and_the_limits_can_be_tried(folder: Path) -> None:
    file, images = folder / "m.safetensors", folder / "images"
    run("convert", "test_resnet", "--weights", "none", "--robust", "-o", file, "--json")
    options = ["--severity", "1", "--input-size", "32", "--limits", "-0.1", "0.1", "0.1"]
    done = CliRunner().invoke(main, ["robustness", str(file), "--data", str(images), *options])
    assert done.exit_code == 0, done.output
    assert re.search(r"clean .* 100% \(\d\d-100\)", done.stdout)
    options[-3:] = ["0.1", "-0.1", "0.1"]
    done = CliRunner().invoke(main, ["robustness", str(file), "--data", str(images), *options])
    assert done.exit_code == 2
    assert "lower limit" in done.stderr


def test_images_without_robust_are_refused(folder: Path) -> None:
    done = CliRunner().invoke(main, ["convert", "test_resnet", "--data", str(folder)])
    assert done.exit_code == 2
    assert "--robust" in done.stderr


def test_a_target_without_restoring_path_is_refused_before_the_work() -> None:
    for settings in (["--to", "gn"], ["--init", "moments"]):
        done = CliRunner().invoke(main, ["convert", "test_resnet", "--weights", "none", "--robust", *settings])
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1].startswith("Error: --robust bounds the restoring path")


def test_a_checkpoint_without_bound_is_refused(folder: Path) -> None:
    file = folder / "m.safetensors"
    run("convert", "test_resnet", "--weights", "none", "-o", file, "--json")
    done = CliRunner().invoke(main, ["robustness", str(file), "--data", str(folder / "images")])
    assert done.exit_code == 2
    assert "convert it with --robust" in done.stderr
    done = CliRunner().invoke(main, ["robustness", str(file), "--data", str(folder), "--plot", "nowhere/plot.png"])
    assert done.exit_code == 2
    assert "no folder nowhere" in done.stderr
