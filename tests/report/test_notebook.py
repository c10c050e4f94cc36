"""What notebooks show: tables, whose text is escaped."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ilmconvert
from ilmconvert.calibration.calibrate import Calibration, calibrate
from ilmconvert.calibration.collapse import Collapse, CollapsedLayer
from ilmconvert.calibration.score import Score
from ilmconvert.evaluation import Fidelity, OutputDifference, fidelity
from ilmconvert.evaluation.accuracy import Evaluation, evaluate
from ilmconvert.evaluation.demo import Comparison, DemoResult
from ilmconvert.evaluation.verify.inputs import random_sample
from ilmconvert.evaluation.verify.opened_checkpoint import open_checkpoint
from ilmconvert.evaluation.verify.source_model import find_source_model
from ilmconvert.evaluation.verify.verification import Verification, verify
from ilmconvert.finetune import Recipe, Result, get_recipe
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.run_folder import RunFolder
from ilmconvert.models.create import create_model
from ilmconvert.models.load_weights import LoadedWeights
from ilmconvert.report import Run, RunComparison, notebook, read_run
from ilmconvert.report.compare_runs import Repeated
from ilmconvert.report.tables import Cell, Table
from tests.helpers import randomize_norms, save_trained

BAD = "<script>alert(1)</script>&amp;"


class Shown(HTMLParser):
    """The rows of every table; fails where tags don't match or one isn't of a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"p", "b", "div", "table", "thead", "tbody", "tr", "th", "td", "br", "small"}, tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            assert ("style", "text-align: left") in attrs or ("style", "text-align: right") in attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def network() -> nn.Module:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 16, 3))
    model.add_module(BAD, nn.BatchNorm2d(16))
    model.add_module("ln", nn.LayerNorm(6))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(16 * 36, 4))
    return randomize_norms(model.eval())


def batches(count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, 8, 8) for _ in range(count)]


def verification(path: Path) -> Verification:
    weights = save_trained(path)
    model = create_model("test_resnet", weights=weights)
    ilmconvert.save(ilmconvert.convert(model), path / "<b>x.safetensors")
    opened = open_checkpoint(path / "<b>x.safetensors")
    sample = random_sample(opened.model, batches=1, batch_size=2, size=48)
    return verify(opened, find_source_model(opened, weights=str(weights)), sample)


def run_of(path: Path) -> Run:
    folder = RunFolder(path / "run")
    data = {"train": 8, "val": 4}
    folder.write_config(
        {"recipe": {"name": BAD, "to": "ilm_gn"}, "model": {"name": BAD, "converted_here": True}, "data": data}
    )
    folder.write_metrics([{"epoch": 1, "train_loss": 0.5, "val_top1": 0.75, "lr": 0.1}])
    folder.best.write_bytes(b"")
    folder.write_summary({"status": "finished", "model": BAD, "before": {"top1": 0.5, "against_top1": 0.5}})
    return read_run(folder.path)


def result_of(path: Path) -> Result:
    run = run_of(path)
    return Result(run.path, run.path / "best.safetensors", run.path / "last.safetensors", 1, {}, {})


SCORE = Score(0.5, 0.25, 0.125)
#: What notebooks show, and a text of its tables.
OBJECTS: dict[type, tuple[Callable[[Path], Any], str]] = {
    ilmconvert.Plan: (lambda path: ilmconvert.plan(network()), "BatchNorm2d"),
    ilmconvert.ConversionInfo: (lambda path: ilmconvert.info(ilmconvert.convert(network())), "ILM Norm"),
    LoadedWeights: (lambda path: LoadedWeights(Path(BAD), "model", {"epoch": 7}, left_out=(BAD,)), "7"),
    OutputDifference: (lambda path: OutputDifference(0.5, 0.25, 1.0), "100.0 %"),
    Evaluation: (lambda path: evaluate(network(), [(x, torch.tensor([0, 1, 2, 3])) for x in batches()]), "12"),
    Fidelity: (lambda path: fidelity(network(), ilmconvert.convert(network()), batches()), "BatchNorm2d"),
    Verification: (verification, "largest error over the largest output"),
    Calibration: (lambda path: calibrate(ilmconvert.convert(network(), "ln"), batches(4), source=network()), "kept"),
    Collapse: (lambda path: Collapse(network(), (CollapsedLayer(BAD, 0.5, False),), SCORE), "0.5"),
    DemoResult: (
        lambda path: DemoResult("ilm_gn", (BAD,), (True,), tuple(Comparison("", BAD, (), 0.5, 1, 1) for _ in "ab")),
        "50 %",
    ),
    Recipe: (lambda path: Recipe(name=BAD), "Softmax temperature for distillation."),
    Result: (result_of, "75.0 %"),
    Run: (run_of, "75.0 %"),
    RunComparison: (lambda path: RunComparison((Repeated(BAD, "", {0: 0.75}, {}),), None), "75.0 %"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.__name__)
def test_it_shows_as_tables_and_all_text_is_escaped(kind: type, tmp_path: Path) -> None:
    make, text = OBJECTS[kind]
    shown = make(tmp_path)
    assert type(shown) is kind
    found = Shown(shown._repr_html_())
    assert found.tables
    assert any(text in cell for table in found.tables for row in table for cell in row), found.tables
    for table in found.tables:
        assert len({len(row) for row in table}) == 1
    if kind not in (OutputDifference, Evaluation, Calibration, Verification):
        assert BAD in found.text
    if kind is Verification:
        assert "<b>x.safetensors" in found.text


def test_every_function_of_the_notebook_is_a_class_of_the_table() -> None:
    functions = {
        name for name, f in vars(notebook).items() if inspect.isfunction(f) and f.__module__ == notebook.__name__
    }
    assert len([name for name in functions if not name.startswith("_")]) == len(OBJECTS)


def test_a_plan_is_what_is_printed() -> None:
    found = ilmconvert.plan(network())
    (table,) = Shown(found._repr_html_()).tables
    assert table[0] == ["layer", "source", "channels", "becomes"]
    for entry, row in zip(found, table[1:], strict=True):
        assert row[0] == entry.name
        assert row[3] in str(found)
    assert "1 to convert, 1 skipped, 0 refused" in Shown(found._repr_html_()).text


def test_a_recipe_shows_every_field() -> None:
    (table,) = Shown(get_recipe("norm", epochs=3)._repr_html_()).tables
    rows = {row[0]: row[1] for row in table[1:]}
    assert rows.keys() == settings_of(Recipe).keys()
    assert (rows["train"], rows["epochs"], rows["lr"], rows["scale"]) == ("norm", "3", "none", "0.35 1.0")


def test_a_run_shows_what_was_measured(tmp_path: Path) -> None:
    networks, epochs = Shown(run_of(tmp_path)._repr_html_()).tables
    assert networks[0] == ["Network", "Before", "Right after", "After", "Best epoch"]
    assert networks[1][1:] == ["50.0 %", "50.0 %", "75.0 %30.1 to 95.4", "1 of 1"]
    assert epochs == [["Epoch", "Training loss", "Top-1", "Learning rate"], ["1", "0.5", "75.0 %", "0.1"]]


def test_a_result_without_its_files_shows_its_summary(tmp_path: Path) -> None:
    dry = Result(tmp_path / "run", None, None, None, {}, {"steps": 12, "model": {"name": "net"}})
    found = Shown(dry._repr_html_())
    assert "dry run" in found.text
    assert ["steps", "12"] in found.tables[0]
    gone = Result(tmp_path / "run", tmp_path / "best.safetensors", None, 1, {}, {"status": "finished"})
    assert "the files are gone" in gone._repr_html_()


def test_the_page_and_the_notebook_have_one_table() -> None:
    table = Table(("a", "b"), [(BAD, Cell("1", BAD))], numbers=1)
    assert str(table.__html__()).count("&lt;script&gt;") == 2
    assert "style" not in table.__html__()
    assert re.sub(r"<[^>]*>", "", table.html(inline=True)) == re.sub(r"<[^>]*>", "", table.__html__())
    assert "script>" not in json.dumps(table.html(inline=True))
