"""What commands that take long say off a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilmconvert.cli import _progress
from ilmconvert.cli._progress import Lines, progress
from tests.cli.commands import run

SMALL = ["--input-size", "48", "--batch-size", "2"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that only tests advance; the timer never rings."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_short_commands_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as say:
        say("loading")
        clock[0] += _progress.PATIENCE - 1
        say("writing")
    assert capsys.readouterr().err == ""


def test_long_ones_say_their_steps_and_now_and_then_a_count(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress() as say:
        clock[0] += _progress.PATIENCE
        say("loading")
        say("loading")
        for done in range(8):
            clock[0] += 10
            say(f"{done} images", often=True)
        say("writing")
    assert capsys.readouterr().err.splitlines() == ["loading", "2 images", "5 images", "writing"]


def test_a_long_step_is_heard_of_while_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    try:
        lines.say("tracing")
        assert capsys.readouterr().err == ""
        lines._timer.function()  # what it does when it rings
        lines._timer.function()
        assert capsys.readouterr().err == "tracing\n"
    finally:
        lines.close()
    assert lines._timer.finished.is_set()


def test_quiet_ones_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    assert "looking at test_resnet" in run("test_resnet", "--weights", "none").stderr
    assert run("test_resnet", "--weights", "none", "--force", "--quiet").stderr == ""


@pytest.fixture
def checkpoints(trained: Path) -> None:
    """An exact checkpoint, a plain one, and images."""
    for to in ("ilm_gn", "gn"):
        assert run("test_resnet", "--weights", str(trained), "--to", to).exit_code == 0
    Path("images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(f"images/{i}.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "test_resnet-ilm_gn.safetensors", "--unlabelled", "--against", "test_resnet-gn.safetensors",
          "--data", "images", *SMALL], ["loading test_resnet-ilm_gn.safetensors", "opening images", "2 of 8 images"]),
        (["verify", "test_resnet-ilm_gn.safetensors", "--data", "images", *SMALL],
         ["loading test_resnet-ilm_gn.safetensors", "looking for the source", "compared 2 of 8 images"]),
        (["calibrate", "test_resnet-gn.safetensors", "--data", "images", *SMALL],
         ["reading images", "fitting layer after layer", "fitting the constants: 1 of 15 layers"]),
        (["collapse", "test_resnet-ilm_gn.safetensors", "--tolerance", "1e9", "--data", "images", *SMALL],
         ["measuring every layer"]),
        (["robustness", "test_resnet-ilm_gn.safetensors", "--data", "images", "--input-size", "48", "--severity", "1",
          "--limits", "-1", "1", "1"], ["reading images of images", "condition 1 of 20"]),
        (["export", "test_resnet-ilm_gn.safetensors", "--format", "pt2", "--static", "--size", "48"],
         ["tracing", "comparing with the model"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)  # fmt: skip
def test_the_steps_of_long_commands(
    words: list[str], said: list[str], checkpoints: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    result = run(*words)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    for text in said:
        assert any(line.startswith(text) for line in lines), result.stderr
