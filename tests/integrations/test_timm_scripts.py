"""timm's train.py and validate.py, from a checkout that an environment variable names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, blocks, evaluate

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def scripts() -> Path:
    """The checkout of timm."""
    place = os.environ.get("ILMCONVERT_TIMM_SCRIPTS")
    if not place:
        pytest.skip("ILMCONVERT_TIMM_SCRIPTS names no checkout of timm's repository")
    assert (Path(place) / "train.py").is_file(), f"no train.py in {place}"
    return Path(place).resolve()


def draw(folder: Path) -> None:
    """Squares in four colours, in the folders that timm takes for classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2)):
        for label in range(4):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 80, (64, 64, 3)) + np.array([(label & 1) * 150, (label >> 1) * 150, 40])
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")


def run(command: list[str], scripts: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "TIMM": str(scripts), "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def loss(text: str) -> float:
    """The average loss, of the last line that has one."""
    return float(re.findall(r"Loss:\s*[\d.]+ \(\s*([\d.]+)\)", text)[-1])


@pytest.mark.slow
def test_page(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "data")
    torch.manual_seed(0)
    page = Page("timm_scripts")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    page.run_rest()
    start, x = convert(source), torch.randn(2, 3, 64, 64)
    assert_same(evaluate(start, x), evaluate(source, x))
    run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks("timm_scripts", "bash"))], scripts)

    torch.save(source.state_dict(), "source.pth")
    settings = "--num-classes 4 --input-size 3 64 64 --batch-size 2 --log-freq 1 --workers 1 --device cpu"
    validate = [sys.executable, str(scripts / "validate.py"), "data", *settings.split(), "--no-prefetcher"]
    expected = loss(run([*validate, "--model", "test_resnet", "--checkpoint", "source.pth"], scripts))
    assert expected > 0
    assert loss(Path("before.txt").read_text()) == pytest.approx(expected, abs=2e-4)
    assert loss(Path("after.txt").read_text()) < expected
    for name, epochs in (("first", 1), ("second", 2)):
        saved = torch.load(f"runs/{name}/last.pth.tar", weights_only=False)
        assert saved["epoch"] == epochs - 1
        for key in ("state_dict", "state_dict_ema"):
            trained = convert(source)
            trained.load_state_dict(saved[key])
            assert_norms_learnt(trained, start)
