"""The file that repeats a run, of runs that were started in Python."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from ilmconvert.cli import main
from ilmconvert.cli._global import global_options
from ilmconvert.errors import RecipeError
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.recipe import Recipe, get_recipe
from ilmconvert.finetune.recipe_fields import RUN_OPTIONS
from ilmconvert.finetune.run_file import run_file, run_file_of
from tests.finetune.finetune_jobs import bars, network, run


def read_back(path: Path) -> str:
    result = CliRunner().invoke(main, ["finetune", "--config", str(path), "--show-config"])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_what_has_no_name_is_said(tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1, recipe="norm")
    path = tmp_path / "run" / "run.yaml"
    text = path.read_text()
    assert "# The model was given in Python: name it on the command line." in text
    assert "# The data was given in Python" in text
    options = yaml.safe_load(text)["finetune"]
    assert not {"model", "data"} & options.keys()
    assert (options["output"], options["num-classes"], options["log-with"]) == (str(tmp_path / "run"), 4, ["none"])
    assert get_recipe(path) == get_recipe(
        "norm", epochs=1, batch_size=8, lr=0.01, clip_grad=1.0, workers=0, input_size=32, no_aug=True
    )
    again = yaml.safe_load(read_back(path))["finetune"]
    assert again.items() >= options.items()


def test_names_and_paths_are_written(tmp_path: Path) -> None:
    options = {
        "output": tmp_path,
        "weights": Path("w.pth"),
        "val_split": 0.2,
        "baseline": ("train-bn",),
        "num_classes": None,
    }
    text = run_file_of(Recipe(name="mine"), model="resnet50", data=Path("pets"), teacher=None, **options)
    found = yaml.safe_load(text)["finetune"]
    assert "in Python" not in text
    assert (found["model"], found["data"], found["weights"]) == ("resnet50", "pets", "w.pth")
    assert (found["val-split"], found["baseline"], found["recipe-name"]) == (0.2, ["train-bn"], "mine")
    assert "num-classes" not in found
    assert "teacher" not in found
    assert "The teacher was given" in run_file_of(Recipe(), model="a", data=bars(4), teacher=network(), output="x")
    (tmp_path / "run.yaml").write_text(text)
    assert yaml.safe_load(read_back(tmp_path / "run.yaml"))["finetune"].items() >= found.items()


def test_mappings_are_pairs_and_odd_strings_stay_strings(tmp_path: Path) -> None:
    odd = ["no", "1e-3", "a: b", "- x", "# y", "null", "two\nlines", "ü", "run...", "'", "{a}"]
    for text in odd:
        found = yaml.safe_load(run_file({"Run": {"data": text, "model-arg": {"in_chans": 1}}}, Recipe()))["finetune"]
        assert found["data"] == text
        assert found["model-arg"] == ["in_chans=1"]


def test_a_recipe_is_read_from_a_run_with_its_aliases(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("finetune: {data: pets, recipe: norm, kd-temperature: 3, batch_size: 4}")
    assert get_recipe(path) == get_recipe("norm", temperature=3.0, batch_size=4)
    path.write_text("finetune: {epochs: 0}")
    with pytest.raises(RecipeError, match="epochs has to be at least 1"):
        get_recipe(path)


def test_options_that_a_file_may_hold_are_those_of_the_command() -> None:
    command = main.get_command(click.Context(main), "finetune")
    assert command is not None
    shared = {parameter.name for parameter in global_options()} | {"help"}
    long = {
        (next((name for name in p.opts if name.startswith("--")), p.name or "")).lstrip("-").replace("-", "_")
        for p in command.params
        if p.name not in shared
    }
    assert long - set(settings_of(Recipe)) == RUN_OPTIONS | {"recipe", "recipe_name"}
