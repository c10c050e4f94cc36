"""The commands that the README and the start page show run as they stand, one after the other in one folder."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import _registry
from torch import nn

from ilmconvert.models import timm_zoo
from tests.cli.commands import run
from tests.helpers import ROOT, randomize_norms

#: The network with default weights has half the depth and a quarter of the width, to be quick.
SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
PAGES = {
    "README": (ROOT / "README.md", "On the command line"),
    "index": (ROOT / "docs/index.md", "The same on the com"),
}


def block(page: Path, heading: str) -> list[list[str]]:
    """The words of each command in the block below a heading, the program's name and comments left out."""
    text = page.read_text().partition(f"\n## {heading}")[2]
    lines = re.search(r"\n\n((?:    ilmconvert .+\n)+)\n", text)
    assert lines is not None
    return [shlex.split(line, comments=True)[1:] for line in lines[1].splitlines()]


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(folder.parts))
    for index in range(count):
        Image.fromarray(random.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def trained(architecture: str, **args: Any) -> nn.Module:
    """In the place of pretrained weights, for which there is no network: the same random ones each time."""
    torch.manual_seed(0)
    return randomize_norms(timm.create_model(architecture, **args), scale=0.5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take for granted: images, weights of one's own, and the pretrained ones of timm."""
    draw(tmp_path / "photos", 4)
    for split in ("train", "val"):
        for label in range(37):
            draw(tmp_path / "pets" / split / f"{label:02}", 1)
    torch.save(trained("resnet18", num_classes=10).state_dict(), tmp_path / "my.pth")

    def without_download(name: str, architecture: str, args: dict[str, Any]) -> tuple[nn.Module, dict[str, Any], Any]:
        return trained(architecture, **{**SMALL, **args}), SMALL, {"weights": "default"}

    monkeypatch.setattr(timm_zoo, "build_pretrained", without_download)
    # and is for small images
    small = replace(timm.models.get_pretrained_cfg("resnet18"), input_size=(3, 32, 32))
    monkeypatch.setitem(_registry._model_pretrained_cfgs, f"resnet18.{small.tag}", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "left_out"),
    [
        ("README", "export"),  # ONNX takes half a minute, and tests/export has it
        pytest.param("README", None, marks=pytest.mark.slow),
        pytest.param("index", None, marks=pytest.mark.slow),
    ],
)
def test_commands_run_in_order(page: str, left_out: str | None, folder: Path) -> None:
    commands = block(*PAGES[page])
    assert len(commands) >= 5
    for words in (words for words in commands if words[0] != left_out):
        result = run(*words)
        assert result.exit_code == 0, f"ilmconvert {shlex.join(words)}: {result.output}"
    assert (folder / "resnet18-ilm_gn.safetensors").is_file()
    assert (folder / "run" / "best.safetensors").is_file()
