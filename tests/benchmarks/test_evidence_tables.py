"""The evidence runner: the file of runs, and its tables and plots."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence import page, plot, rates, tables
from benchmarks.evidence.arms import ADAMW, ARMS, FIRST_NORM, FROZEN, STANDARDISED
from benchmarks.evidence.paired import CLEAN, COLUMNS, best_way, differences, finals, of
from benchmarks.evidence.runs import SELECTION, RunFile, read
from benchmarks.evidence.select import SEEDS
from benchmarks.report import Table
from ilmconvert.errors import ILMConvertError
from ilmconvert.evaluation.estimate import estimate
from tests.benchmarks.evidence_jobs import run


def test_a_line_that_was_cut_off_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    file.add(run(FROZEN, 0, 0.5))
    whole = file.path.read_text()
    file.path.write_text(whole + whole[:20])
    again = RunFile(file.path)
    again.add(run(FROZEN, 1, 0.6))
    assert [found.seed for found in read(file.path)] == [0, 1]
    file.path.write_text("no run\n" + whole)
    with pytest.raises(ILMConvertError, match="line 1"):
        list(read(file.path))


def test_intervals_are_students_over_paired_differences() -> None:
    runs = [run(FROZEN, seed, accuracy) for seed, accuracy in enumerate([0.6, 0.7, 0.8])]
    runs += [run("ilm-gn", seed, accuracy) for seed, accuracy in enumerate([0.7, 0.8, 0.9, 0.1])]
    values = differences(finals(runs, "fashion-mnist", "short"), "ilm-gn", of(CLEAN))
    assert values == pytest.approx([0.1, 0.1, 0.1])  # the fourth seed has nothing to be compared with
    found = estimate([0.0, 0.1, 0.2, 0.3])
    assert found.error == pytest.approx(0.0645497)
    assert found.half == pytest.approx(3.182446 * 0.0645497, rel=1e-5)
    assert estimate([0.1]).half is None


def test_in_short_each_step_is_a_difference_from_the_one_before() -> None:
    """Each baseline in the way of training that is best on the images of the row."""
    measured = {
        "frozen-bn": (0.5, 0.1),
        "frozen-bn-adamw-fast-warm": (0.1, 0.4),
        "frozen-bn-standardised-adamw-fast-warm": (0.6, 0.6),
        "frozen-bn-standardised-warm": (0.5, 0.5),
        "ilm-in-first-standardised-adamw-fast-warm": (0.7, 0.8),
        "ilm-in-first-standardised-warm": (0.9, 0.9),  # not the recipe
    }
    made = [
        replace(run(arm, seed, clean), shifted=dict.fromkeys(COLUMNS[1:], shifted))
        for arm, (clean, shifted) in measured.items()
        for seed in (0, 1)
    ]
    table = tables.in_short(made, [("fashion-mnist", "short"), ("clipart", "short")])
    assert [list(row.values())[1] for row in table.rows] == ["clean", "nine shifts"]  # none of a set that wasn't run
    first, second = ([str(cell).split(" ")[0] for cell in list(row.values())[2:]] for row in table.rows)
    assert first == ["0.500", "0.600", "+0.100", "+0.200", "+0.100"]
    assert second == ["0.400", "0.600", "+0.200", "+0.400", "+0.200"]
    assert str(table.rows[0]["frozen BN"]).endswith("(SGD)")
    without = [one for one in made if one.arm.startswith(STANDARDISED) or one.arm == FIRST_NORM]
    cells = list(tables.in_short(without, [("fashion-mnist", "short")]).rows[0].values())
    assert [str(cell).split(" ")[0] for cell in cells[2:]] == ["-", "0.600", "-", "-", "+0.100"]


def test_augmentation_is_compared_with_frozen_batch_norm_without_it() -> None:
    measured = {("fashion-mnist", 0.5), ("fashion-mnist-augmented", 0.6)}
    runs = [run(FROZEN + ADAMW, seed, x + seed / 100, image_set=s) for s, x in measured for seed in (0, 1)]
    runs += [run(FIRST_NORM, seed, 0.8 + seed / 100, image_set="fashion-mnist-augmented") for seed in (0, 1)]
    table = tables.augmentation(runs, "fashion-mnist", "fashion-mnist-augmented", "short")
    names = [ARMS[arm].title + end for arm in (FROZEN + ADAMW, FIRST_NORM) for end in ("", ", augmented")]
    assert [row["network"] for row in table.rows] == names
    assert [str(row["clean"]).split(" ")[0] for row in table.rows] == ["0.505", "+0.100", "-", "+0.300"]


def test_a_way_of_training_with_fewer_seeds_is_not_the_best() -> None:
    runs = [run("frozen-bn", seed, 0.5) for seed in (0, 1)] + [run("frozen-bn-warm", 0, 0.9)]
    by_arm = finals(runs, "fashion-mnist", "short")
    assert best_way(by_arm, "frozen-bn", of(CLEAN)) == ""
    assert best_way(by_arm, "ilm-gn", of(CLEAN)) is None


def test_settings_that_were_not_tried_together_are_shown_without_an_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distillation off and the norms' full rate each help, so both are kept; no selection run has both."""
    file = RunFile(tmp_path / "runs.jsonl")
    for seed in SEEDS:
        file.add(run("ilm-gn", seed, 0.6, phase=SELECTION, rate=0.002))
        file.add(run("ilm-gn", seed, 0.7, phase=SELECTION))
        file.add(run("ilm-gn", seed, 0.75, phase=SELECTION, distill=0.0))
        file.add(run("ilm-gn", seed, 0.75, phase=SELECTION, norm_scale=1.0))
    tables.main([str(file.path)])
    assert "| 0.005 | 0 | x1 | - | 8 |" in capsys.readouterr().out


def test_a_plot_without_final_runs_is_refused(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    file.add(run(FROZEN, SEEDS[0], 0.5, phase=SELECTION))
    with pytest.raises(ILMConvertError, match="no final runs of fashion-mnist, short"):
        plot.main([str(file.path), "-o", str(tmp_path / "plot.svg")])


def test_rates_are_shown_with_what_was_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift_ in (("runs", 0.0), ("before-a-change", 0.1)):
        file = RunFile(tmp_path / f"{name}.jsonl")
        file.add(run("ilm-gn", SEEDS[0], 0.6 + shift_, phase=SELECTION))
        file.add(run("ilm-gn", SEEDS[1], 0.7 + shift_, phase=SELECTION))
        file.add(run("ilm-gn", SEEDS[0], 0.9, phase=SELECTION, distill=0.0))
    files = [str(file) for file in tmp_path.glob("*.jsonl")]
    rates.main([*files, "-o", str(tmp_path / "rates.svg")])
    title = ARMS["ilm-gn"].title
    printed = capsys.readouterr().out
    assert f"| {title} | 0.650 (2 seeds) |" in printed
    assert f"| {title} (before a change) | 0.750 (2 seeds) |" in printed
    assert "before a change" in (tmp_path / "rates.svg").read_text()


def test_the_pages_hold_the_tables_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """When results were added: ``python -m benchmarks.evidence.page --write``."""
    texts, made = [found.read_text(encoding="utf-8") for found in page.PAGES], page.all_tables()
    assert [page.written(text, made) for text in texts] == texts
    with pytest.raises(SystemExit, match="'speed'"):
        page.written("<!-- table: speed -->\n", made)
    page.main([])
    printed = set(capsys.readouterr().out.splitlines())
    parts = [text.partition("## What stands where")[0] for text in texts]
    for quoted in ([line for line in part.splitlines() if line.startswith("|")] for part in parts):
        assert len(quoted) > 20
        assert [line for line in quoted if line not in printed] == []


def test_a_stale_table_is_replaced() -> None:
    made = {"speed": Table("Speed", [{"network": "a", "ms": 2}])}
    stale = "Before.\n\n<!-- table: speed -->\n\n| network | ms |\n|---|---|\n| a | 1 |\n\nAfter.\n"
    assert page.written(stale, made) == stale.replace("| a | 1 |", "| a | 2 |")


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    page.draw(tmp_path)
    texts = [found.read_text(encoding="utf-8") for found in page.PAGES]
    shown = set(re.findall(r"\(assets/(.+?\.svg)\)", "\n".join(texts)))
    assert len(shown) == 5
    assert {file.name for file in tmp_path.iterdir()} == shown
