"""Bars for ``progress=True``, on a terminal of tests; tqdm makes widgets of them in notebooks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ilmconvert import convert
from ilmconvert.calibration import calibrate
from ilmconvert.evaluation import fidelity
from ilmconvert.evaluation.accuracy import evaluate
from ilmconvert.evaluation.progress_bar import count_bar
from ilmconvert.finetune import Progress
from ilmconvert.finetune.run_log import logger
from ilmconvert.testing import randomize_norms
from tests.finetune.finetune_jobs import run

IMAGES = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(4)]


def network() -> nn.Module:
    return randomize_norms(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(576, 4)).eval()
    )


def test_evaluations_show_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = [(x, int(y)) for xs, ys in IMAGES for x, y in zip(xs, ys, strict=True)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)  # type: ignore[arg-type]
    evaluate(network(), loader, progress=True)
    assert "8/8" in capsys.readouterr().err
    evaluate(network(), loader, progress=False)
    evaluate(network(), loader)
    assert capsys.readouterr().err == ""
    seen: list[tuple[int, int | None]] = []
    evaluate(network(), loader, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]


def test_comparisons_and_calibrations_show_one(capsys: pytest.CaptureFixture[str]) -> None:
    fidelity(network(), convert(network()), IMAGES, progress=True)
    assert "8 images" in capsys.readouterr().err
    source = network()
    calibrate(convert(source, "ln"), IMAGES, source=source, progress=True)
    shown = capsys.readouterr().err
    assert "constants" in shown
    assert "1/1" in shown


def test_a_count_may_begin_again(capsys: pytest.CaptureFixture[str]) -> None:
    with count_bar(True, "layers") as told:
        assert told is not None
        for what in ("one", "two"):
            for done in (1, 2):
                told(done, 2, what)
    assert re.search(r"two.*2/2", capsys.readouterr().err)


def test_the_bar_ends_where_something_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def images() -> Iterator[Tensor]:
        yield IMAGES[0][0]
        raise ValueError("a damaged image")

    with pytest.raises(ValueError, match="a damaged image"):
        fidelity(network(), convert(network()), images(), progress=True)
    assert capsys.readouterr().err.endswith("\n")


def test_a_run_shows_a_bar_and_a_line_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    run(tmp_path / "run", epochs=2, progress=True)
    shown = capsys.readouterr()
    assert [line.partition(":")[0] for line in shown.out.splitlines()][1:] == ["epoch 1/2", "epoch 2/2"]
    assert re.search(r"epoch 2/2: 100%.*6/6.*loss=", shown.err)
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])
    run(tmp_path / "silent", epochs=1)
    assert capsys.readouterr() == ("", "")


def test_a_program_that_shows_its_log_hears_each_line_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", epochs=1, progress=True)
    assert sum("epoch 1/1: " in record.getMessage() for record in caplog.records) == 1
    assert capsys.readouterr().out == ""


def test_a_function_is_called_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    run(tmp_path / "run", epochs=1, progress=seen.append)
    assert [now.step for now in seen] == [1, 2, 3]
    assert capsys.readouterr() == ("", "")
