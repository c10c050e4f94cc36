"""What a run says on the library's logger."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from ilmconvert.finetune import run_log
from ilmconvert.finetune.run_log import EpochLog, epoch_text
from tests.finetune.finetune_jobs import bars, network, run, tensor


def test_python_hears_it_by_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ilmconvert"):
        run(tmp_path / "run", epochs=2)
    records = [record for record in caplog.records if record.name == "ilmconvert.finetune.run_log"]
    assert [record.levelname for record in records] == ["INFO"] * 3
    assert records[1].getMessage().startswith("epoch 1/2: loss ")
    assert records[2].getMessage().startswith("epoch 2/2: loss ")


@pytest.mark.parametrize(("contrast", "given", "warned"), [(0.1, None, True), (0.1, 1.0, False), (1.0, None, False)])
def test_images_that_are_standardised_to_little_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, contrast: float, given: float | None, warned: bool
) -> None:
    data = bars()
    flat = {part: [(contrast * tensor(x), label) for x, label in getattr(data, part)] for part in ("train", "val")}
    with caplog.at_level(logging.WARNING, logger="ilmconvert"):
        run(tmp_path, data=replace(data, **flat), epochs=1, standardize_input=True, input_std=given, dry_run=True)
    assert ("--input-std 1" in caplog.text) == warned


def test_without_validation_no_epoch_is_called_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ilmconvert"):
        run(tmp_path / "run", epochs=1, data=bars(val=False))
    assert "best" not in caplog.text
    assert "val" not in caplog.records[-1].getMessage()


def test_the_time_left_counts_only_what_this_process_trained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now[0])
    log = EpochLog("", done=4, epochs=10)
    now[0] += 20.0
    with caplog.at_level(logging.INFO, logger="ilmconvert"):
        log.say({"epoch": 6, "train_loss": 1.0}, best=False)
    # two epochs in 20 s, four to go
    assert caplog.records[0].getMessage() == "epoch 6/10: loss 1.000, 0:00:40 left"


@pytest.mark.parametrize("dead", [True, False])
def test_a_network_that_died_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, dead: bool) -> None:
    model = network()
    if dead:
        for norm in (model.layer4[-1].bn2, model.layer4[-1].downsample[-1]):  # type: ignore[index,union-attr]
            nn.init.constant_(norm.bias, -1e4)  # before a ReLU  # type: ignore[union-attr,arg-type]
    with caplog.at_level(logging.INFO, logger="ilmconvert"):
        run(tmp_path / "run", model=model, epochs=2, to="ilm_gn")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == dead
    assert all("the network below it has died" in text for text in warned)


def test_agreement_and_names() -> None:
    row = {"epoch": 1, "train_loss": 2.0, "val_agreement": 0.25}
    text = epoch_text(row, 1, 0.0, name="frozen-bn", best=True)
    assert text == "frozen-bn: epoch 1/1: loss 2.000, agreement with the teacher 25.0 % (best)"


def test_the_library_is_silent_by_itself() -> None:
    code = "import logging, ilmconvert\nlogging.getLogger('ilmconvert.x').error('hush')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
