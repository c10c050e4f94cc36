"""The programs in examples/ run, print what their header announces, and measure what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import write_fashion_mnist

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
# Several runs even when quick.
SLOW = {"transfer_batch_size_2", "distill_unlabelled", "dp_opacus", "paper_cifar10", "robot_policy_ema"}
NUMBER = re.compile(r"\d+(\.\d+)?")
# What a quick run has to print as the header does, number by number: it doesn't depend on how long training is.
KEPT = {
    "distill_unlabelled": r"restoring path +same class as the source: [\d.]+%",
    "dp_opacus": r"refuses \d+ layers|\d+ trained, epsilon [\d.]+",
}


def program(name: str) -> ModuleType:
    """An example as a module; other packages are called ``examples``, too."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shape(text: str) -> str:
    """A line of output without its numbers and its spacing."""
    return " ".join(NUMBER.sub("#", text).split())


def header(name: str) -> str:
    return (ROOT / "examples" / f"{name}.py").read_text().split('"""')[1]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXAMPLES])
def test_example_runs_and_prints_the_lines_of_its_header(name: str) -> None:
    command = [sys.executable, f"examples/{name}.py", "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    printed = [shape(line) for line in done.stdout.splitlines()]
    announced = [shape(line) for line in header(name).splitlines() if line.startswith("    ") and "$" not in line]
    assert announced
    assert printed == announced
    if name in KEPT:
        assert re.findall(KEPT[name], done.stdout) == re.findall(KEPT[name], header(name)) != []
    if name == "robot_policy_ema":  # the converted encoder starts as the same function as the frozen one
        errors = {line[:20].strip(): NUMBER.findall(line) for line in done.stdout.splitlines()}
        assert errors["converted to ILM-GN"] == errors["BatchNorm, frozen"] != errors["BatchNorm, training"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_header_holds_the_command_and_the_time(name: str) -> None:
    text = header(name)
    assert f"    $ python examples/{name}.py" in text
    assert re.search(r"\d+ (seconds|minutes?)", text)


def test_the_papers_comparison_takes_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--set", "fashion-mnist", "--data-root", str(write_fashion_mnist(tmp_path)), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["paper_cifar10.py", *options, "--norms", "ilm-in"])
    program("paper_cifar10").main()
    assert re.findall(r"ILM-IN +seed (\d) +test top-1 [\d.]+%", capsys.readouterr().out) == ["0", "1"]


@pytest.mark.parametrize("name", ["bn", "gn", "ilm-gn", "ilm-gn-authors", "ln", "ilm-ln", "in", "ilm-in"])
def test_the_papers_network_keeps_the_size_in_its_stem(name: str) -> None:
    paper = program("paper_cifar10")
    network = paper.make_network("resnet18", paper.NORMS[name][1])
    seen: list[torch.Size] = []
    network.layer1.register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, 32, 32)]


class Finder(nn.Module):
    """Finds what it is told to."""

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        super().__init__()
        self.result = {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores)}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.result for _ in images]


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([[10, 10, 20, 20], [30, 30, 50, 50]], [0.9, 0.8], 1.0),
        ([[10, 10, 20, 20], [60, 60, 70, 70]], [0.9, 0.95], 0.25),  # a false one first; one of two found
        ([[10, 10, 20, 20], [10, 10, 20, 19]], [0.9, 0.8], 0.5),  # one of two, found twice
        ([[60, 60, 70, 70]], [0.9], 0.0),
    ],
)
def test_average_precision(boxes: list[list[float]], scores: list[float], expected: float) -> None:
    target = {"boxes": torch.tensor([[10.0, 10, 20, 20], [30, 30, 50, 50]]), "labels": torch.ones(2)}
    model = Finder([[float(v) for v in box] for box in boxes], scores)
    found = program("detection_batch_1").average_precision(model, [(torch.zeros(3, 90, 90), target)])
    assert found == pytest.approx(expected)


def test_coins_of_both_halves_are_found() -> None:
    for image, target in program("detection_batch_1").coins():
        assert image.shape == (3, 303, 188)
        assert 11 <= len(target["boxes"]) <= 13
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2] > 15).all()


def test_puck_is_where_the_action_reaches() -> None:
    module = program("robot_policy_ema")
    images, actions = module.Table(0, held_out=False).demonstrations(16)
    red = (images[:, 0] - images[:, 1:].amax(1) > 1.59).float()
    grid = torch.linspace(-1, 1, module.SIDE)
    total = red.sum((1, 2))
    found = torch.stack([(red.sum(1) * grid).sum(1) / total, (red.sum(2) * grid).sum(1) / total], 1)
    torch.testing.assert_close(found, actions, atol=0.05, rtol=0)
