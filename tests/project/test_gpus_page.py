"""What the page on GPUs says: its launcher works (on a CPU), and the checks that it names are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import ilmconvert
from ilmconvert import ConversionError, convert
from ilmconvert.finetune.recipe import Recipe
from tests.helpers import ROOT, randomize_norms, relative_error

PAGE = (ROOT / "docs/guides/gpus.md").read_text(encoding="utf-8")


def command(start: str) -> list[str]:
    (line,) = re.findall(rf"^    ({start} .+)$", PAGE, re.MULTILINE)
    return shlex.split(line)


def test_the_checks_that_are_named_are_there_and_what_ran_is_said_of_each() -> None:
    rows = re.findall(r"^\| (?!\||-)(.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
    places = {place for _, _, cell in rows for place in re.findall(r"`(tests/\w+)`", cell)}
    assert places == {"tests/nn", "tests/finetune", "tests/benchmarks", "tests/surgery"}
    for place in places:
        assert any("@pytest.mark.gpu" in path.read_text() for path in (ROOT / place).glob("test_*.py"))
    assert len(rows) == 7
    assert all(any(said in cell for said in ("not run", "passed", "not seen to pass")) for _, _, cell in rows)


def test_every_command_of_several_processes_starts_several() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "ilmconvert").rglob("*.py")]
    lines = [line for page in pages for line in page.read_text().splitlines() if "accelerate launch" in line]
    counting = [line for line in lines if "--num_processes" in line]
    assert len(counting) >= 2
    for line in counting:
        assert "accelerate launch --multi_gpu --num_processes 2 " in line  # without it one process, and no word


def test_one_more_process_changes_no_rate() -> None:
    one, two = command("ilmconvert"), command("accelerate launch")
    assert two[2:6] == ["--multi_gpu", "--num_processes", "2", "-m"]  # without the first word one process, on a CPU
    assert set(two[6:]) - set(one) == {"run2"}
    size = int(one[one.index("--batch-size") + 1])
    assert f"here {['', '', '', '', 'four'][size // int(two[4])]} each" in PAGE
    assert Recipe(batch_size=size).learning_rate == 2 * Recipe(batch_size=size // 2).learning_rate


def test_a_wrapped_model_is_refused_with_its_cure() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))
    with pytest.raises(ConversionError, match=r"\.module"):
        convert(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_type_that_comes_in_goes_out(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = convert(randomize_norms(nn.Sequential(nn.BatchNorm2d(16)))).eval()
    x = torch.randn(2, 16, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.float(), layer(x.to(dtype).float())) < 1e-2


@pytest.mark.slow
def test_the_launcher_ends_with_the_weights_of_one_process(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            for index in range(8):
                Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    torch.manual_seed(0)
    network = randomize_norms(timm.create_model("test_resnet", num_classes=2), scale=0.3)
    ilmconvert.save(convert(network), tmp_path / "m.safetensors")
    changed = {"resnet18": "m.safetensors", "37": "2"}
    quick = [
        "--epochs",
        "1",
        "--input-size",
        "32",
        "-j",
        "0",
        "--no-aug",
        "--log-with",
        "none",
        "--lr",
        "0.01",
        "--quiet",
    ]
    one, two = (
        [changed.get(word, word) for word in command(start)][length:]
        for start, length in (("ilmconvert", 1), ("accelerate launch", 2))
    )
    launched = ["-m", "ilmconvert", *one], ["-m", "accelerate.commands.launch", *two]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    states = []
    for processes, words in enumerate(launched, 1):
        line = [sys.executable, *words, *quick]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        (step,) = (tmp_path / words[-1] / "state").iterdir()
        assert len(list(step.glob("random_states_*"))) == processes
        states.append(load_file(tmp_path / words[-1] / "last.safetensors"))
    assert max(relative_error(states[1][key], t) for key, t in states[0].items() if t.any()) < 1e-4
