"""The image sets of the fine-tuning benchmark, its tables, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import finetune_data
from benchmarks.finetune import measure, read
from benchmarks.finetune_arms import Arm, Task, ablations, arms, chosen_arms
from benchmarks.finetune_data import SETS, SIZE, examples, write_set
from benchmarks.finetune_tables import Run, accuracy_table, against_table, goals
from ilmconvert.data.open_data import open_data
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import RECIPES
from ilmconvert.surgery.group_norm_baseline import BASELINES

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("name", SETS)
def test_set_has_the_announced_images_of_every_class(name: str) -> None:
    found = list(examples(name, 0))
    labels = {e.label for e in found}
    assert len(labels) >= 10
    for split, count in (("train", SETS[name].train), ("val", SETS[name].val)):
        assert [sum((e.split, e.label) == (split, label) for e in found) for label in labels] == [count] * len(labels)
    assert {(e.image.size, e.image.mode) for e in found} == {((SIZE, SIZE), "RGB")}


@pytest.mark.parametrize("name", SETS)
def test_seed_chooses_training_images_only(name: str) -> None:
    images = {}
    for run, seed in enumerate((0, 0, 1)):
        made = list(examples(name, seed))
        for split in ("train", "val"):
            images[run, split] = [e.image.tobytes() for e in made if e.split == split]
    assert images[0, "train"] == images[1, "train"] != images[2, "train"]
    assert images[0, "val"] == images[1, "val"] == images[2, "val"]
    assert not set(images[0, "train"]) & set(images[0, "val"])


def test_crops_of_training_and_validation_lie_in_separate_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = Image.new("RGB", (400, 300), "red")
    photograph.paste("blue", (200, 0, 400, 300))
    monkeypatch.setattr(finetune_data, "_open", lambda package, file: photograph)
    for example in examples("photographs", 3):
        assert example.image.getcolors() == [(SIZE * SIZE, (255, 0, 0) if example.split == "train" else (0, 0, 255))]


@pytest.mark.parametrize(("shifted", "plain"), [("digits-noise", "digits"), ("photographs-haze", "photographs")])
def test_shifted_sets_show_the_same_with_less_contrast(shifted: str, plain: str) -> None:
    pairs = list(zip(examples(shifted, 0, quick=True), examples(plain, 0, quick=True), strict=True))
    assert [(a.split, a.label) for a, _ in pairs] == [(b.split, b.label) for _, b in pairs]
    contrast = np.array([[np.asarray(e.image, float).std(axis=(0, 1)).mean() for e in pair] for pair in pairs])
    assert contrast[:, 0].mean() < 0.5 * contrast[:, 1].mean()


def test_written_set_is_a_data_set_and_is_written_once(tmp_path: Path) -> None:
    folder = write_set("digits", 0, tmp_path, quick=True)
    data = open_data(folder)
    assert data.class_names == tuple("0123456789")
    assert (len(data.train), len(data.val)) == (20, 20)  # type: ignore[arg-type]
    image = next((folder / "train" / "3").iterdir())
    image.unlink()
    assert write_set("digits", 0, tmp_path, quick=True) == folder
    assert not image.exists()


def test_unknown_set_is_refused() -> None:
    with pytest.raises(ILMConvertError, match="unknown set 'letters'; use one of digits"):
        next(examples("letters", 0))


def test_arms_cover_every_recipe_and_baseline_with_one_budget() -> None:
    found = list(arms().values())
    everywhere = {name for name, recipe in RECIPES.items() if recipe.opt == "sgd"}  # benchmarks.evidence has the others
    for to in ("ilm_gn", "ilm_ln"):
        assert {arm.recipe for arm in found if arm.to == to} == everywhere
    assert [name for arm in found for name in arm.baselines] == list(BASELINES)
    recipes = [Task(arm, "digits", 0).recipe() for arm in found]
    for budget in ("epochs", "batch_size", "input_size", "opt"):
        assert len({getattr(recipe, budget) for recipe in recipes}) == 1
    assert recipes[0].batch_size == 2


def test_choosing_a_baseline_brings_the_arm_beside_it() -> None:
    assert [arm.name for arm in chosen_arms(["frozen-bn"])] == ["ilm_gn full, fast norms"]
    assert [arm.name for arm in chosen_arms(["ilm_ln norm"])] == ["ilm_ln norm"]


def test_ablations_run_only_if_named_and_differ_from_the_recipe() -> None:
    assert not set(ablations()) & {arm.name for arm in chosen_arms(None)}
    assert [arm.name for arm in chosen_arms(["ilm_gn anneal, late"])] == ["ilm_gn anneal, late"]
    digests = {Task(arm, "digits", 0).settings() for arm in (arms()["ilm_gn anneal"], *ablations().values())}
    assert len(digests) == 1 + len(ablations())


def runs_of(arm: str, accuracies: list[float], name: str = "digits") -> list[Run]:
    return [Run(name, arm, seed, accuracy, 1.0, "x") for seed, accuracy in enumerate(accuracies)]


RUNS = [
    *runs_of("frozen-bn", [0.6, 0.7, 0.8]),
    *runs_of("ilm_gn full", [0.7, 0.8, 0.9]),
    *runs_of("ilm_ln full", [0.5, 0.5, 0.5]),
]


def test_accuracy_table_shows_mean_and_standard_error() -> None:
    rows = accuracy_table([*RUNS, *runs_of("ilm_gn norm", [0.5], "photographs")]).rows
    cells = {row["network"]: (row["digits"], row["photographs"]) for row in rows}
    assert cells["BatchNorm, statistics frozen"] == ("0.700 ± 0.058", None)
    assert cells["ILM-GN, norm"] == (None, "0.500")


def test_differences_are_those_of_the_same_seed() -> None:
    # The accuracies spread by 0.1, their differences not at all.
    rows = against_table([*RUNS, Run("digits", "ilm_gn full", 7, 0.0, 1.0, "x")], "frozen-bn", "").rows
    assert [row["difference"] for row in rows] == ["+0.100 ± 0.000", "-0.200 ± 0.058"]


def test_goals_take_the_best_conversion_and_the_annealed_one() -> None:
    annealed = [*runs_of("ilm_ln full, exact start", [0.7, 0.7, 0.7]), *runs_of("ilm_ln anneal", [0.6, 0.7, 0.8])]
    rows = goals([*RUNS, *annealed]).rows
    assert [(row["network"], row["difference"], row["standard error"]) for row in rows] == [
        ("ILM-GN, full", "+0.100", "0.082"),
        ("ILM-LN, anneal", "+0.000", "0.058"),
    ]


def test_results_of_other_settings_and_half_a_line_are_not_used(tmp_path: Path) -> None:
    task = Task(Arm("ilm_gn full", "full", "ilm_gn"), "digits", 0)
    own, path = Run("digits", "ilm_gn full", 0, 0.5, 1.0, task.settings()), tmp_path / "runs.jsonl"
    lines = [json.dumps(vars(r)) + "\n" for r in (Run("digits", "ilm_gn full", 0, 0.1, 1.0, "old"), own)]
    path.write_text("".join(lines) + lines[0][:20])
    assert measure([task], 1, path) == [own]
    assert path.read_text() == "".join(lines)
    assert read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("other", [{"seed": 1}, {"arm": Arm("a", "full", "ilm_gn", {"lr": 0.5})}, {"quick": True}])
def test_settings_tell_runs_apart(other: dict[str, object]) -> None:
    usual: dict[str, object] = {"arm": Arm("a", "full", "ilm_gn"), "image_set": "digits", "seed": 0}
    assert Task(**usual).settings() != Task(**{**usual, **other}).settings()  # type: ignore[arg-type]


@pytest.mark.slow
def test_benchmark_trains_once_and_prints_its_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.finetune", "--quick", "--seeds", "1", "--sets", "digits"]
    command += ["--arms", "ilm_ln norm", "--jobs", "1", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kept = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (tmp_path / "finetune.md").read_text()
        kept.append((tmp_path / "finetune.jsonl").read_text())
    assert kept[0] == kept[1]
    run = Run(**json.loads(kept[0]))
    assert (run.image_set, run.arm, run.seed) == ("digits", "ilm_ln norm", 0)
    assert f"| ILM-LN, norm | {run.accuracy:.3f} |" in done.stdout
