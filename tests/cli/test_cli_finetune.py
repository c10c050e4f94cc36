"""``ilmconvert finetune``, end to end on a small network and small images."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

import ilmconvert
from ilmconvert.cli import finetune as module
from ilmconvert.cli import main
from ilmconvert.cli._common import library_warnings
from ilmconvert.cli._exit import EXIT_INTERRUPTED
from ilmconvert.cli._finetune_view import bar, better_baselines, numbers
from ilmconvert.data.open_data import open_data
from ilmconvert.finetune import Progress, find_batch_size
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.recipe import RECIPES, Recipe, get_recipe
from ilmconvert.nn import ILMNorm
from ilmconvert.report import Run
from ilmconvert.surgery.group_norm_baseline import BASELINES
from tests.helpers import randomize_norms, save_trained

SMALL = ["--input-size", "48", "-b", "4", "--epochs", "2", "-j", "0", "--lr", "1e-3", "--log-with", "none"]
TIMM_NAMES = {
    "--opt", "--momentum", "--weight-decay", "--clip-grad", "--layer-decay", "--sched", "--lr", "--lr-base",
    "--min-lr", "--epochs", "--warmup-epochs", "--no-aug", "--scale", "--ratio",
    "--hflip", "--vflip", "--color-jitter", "--aa", "--reprob", "--mixup", "--cutmix", "--smoothing", "--seed",
    "--workers", "-j", "-b", "--batch-size", "-vb", "--validation-batch-size", "--grad-accum-steps",
    "--grad-checkpointing", "--channels-last", "--model-ema-decay", "--val-interval", "--recovery-interval",
    "--kd-temperature", "--num-classes", "--resume", "--output", "--data-dir", "--dataset-download", "--train-split",
    "--val-split", "--input-key", "--target-key", "--crop-pct", "--torchcompile",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes that differ in colour, and weights of a network that has seen something."""
    path = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for channel, name in enumerate(("blue", "red")):
            (path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (50, 50, 3))
                image[..., 2 - 2 * channel] += 120
                Image.fromarray(image.astype(np.uint8)).save(path / "data" / split / name / f"{i}.png")
    save_trained(path)
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds data/ and trained.safetensors, and is empty otherwise."""
    for name in ("data", "trained.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["finetune", *args])


def start(*args: str) -> Result:
    """Fine-tune the trained network with a new head of two classes."""
    return run("test_resnet", "--weights", "trained.safetensors", "--data", "data", "--num-classes", "2", *SMALL, *args)


def fails(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def test_a_run_and_what_it_prints() -> None:
    result = start("-o", "run")
    assert result.exit_code == 0, result.stderr
    assert "of 2" in result.stdout
    assert "the head is new" in result.stdout
    *_, wrote, then = result.stdout.splitlines()
    assert wrote == f"Wrote {Path('run/best.safetensors')}"
    followed = CliRunner().invoke(main, shlex.split(then.removeprefix("Next: ilmconvert ")))
    assert followed.exit_code == 0, followed.output
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["recipe"]["lr"] == 1e-3
    assert config["recipe"]["input_size"] == 48
    assert get_recipe("run/config.yaml").epochs == 2
    model = ilmconvert.load("run/best.safetensors")
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 2)


def test_json_and_a_source_with_its_own_head() -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=2)
    randomize_norms(model)
    save_file(model.state_dict(), "two.safetensors")
    converted = CliRunner().invoke(
        main, ["test_resnet", "--weights", "two.safetensors", "--model-arg", "num_classes=2", "-o", "ilm.safetensors"]
    )
    assert converted.exit_code == 0, converted.stderr
    result = run("ilm.safetensors", "--data", "data", "-o", "run", "--json", *SMALL)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert 0 <= summary["accuracy"]["converted"] <= 1
    assert summary["best"]["epoch"] in (1, 2)
    assert summary["data"]["classes"] == ["blue", "red"]


def test_baselines_are_trained_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = start("-o", "run", *chain.from_iterable(("--baseline", name) for name in BASELINES), "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    for name in BASELINES:
        assert BASELINES[name] in result.stdout
        assert Path(f"run/baselines/{name}/metrics.csv").exists()
        shown = CliRunner().invoke(main, ["inspect", f"run/baselines/{name}"]).stdout
        assert f"the baseline {name} of a run" in shown
    # one that has its BatchNorm is converted, in the way that is asked for
    again = run("run/baselines/frozen-bn", "--data", "data", "-o", "again", "--to", "ilm_ln", "--dry-run", *SMALL)
    assert again.exit_code == 0, again.stderr
    assert set(module.BASELINES) == set(BASELINES)
    ended = {name: summary_of(f"run/baselines/{name}")["accuracy"]["fine_tuned"] for name in BASELINES}
    own = summary_of("run")["accuracy"]["fine_tuned"]
    for name, accuracy in ended.items():
        told = f"Better on these images, {100 * accuracy:.1f} %: {BASELINES[name]}, run/baselines/{name}/"
        assert (told in result.stdout) == (accuracy > own)


def summary_of(folder: str) -> Any:
    return json.loads(Path(folder, "summary.json").read_text())


def test_a_baseline_that_did_better_is_named(tmp_path: Path) -> None:
    rows = [{"epoch": 1.0, "val_top1": share, "val_images": 10.0} for share in (0.5, 0.7, 0.5)]
    config = {"recipe": {"to": "ilm_gn"}, "model": {"converted_here": True}}
    names = ("", "frozen-bn", "train-bn")
    own, *others = (Run(tmp_path, name, config, {"best": row}, [row]) for name, row in zip(names, rows, strict=True))
    place = tmp_path / "baselines" / "frozen-bn" / "best.safetensors"
    told = f"Better on these images, 70.0 %: BatchNorm, statistics frozen, {place}"
    assert better_baselines(replace(own, baselines=tuple(others))) == [told]


def test_distillation_without_labels() -> None:
    args = ["--weights", "trained.safetensors", "--data", "data/train", "--unlabelled", "--val-split", "0.25"]
    result = run("test_resnet", *args, "--recipe", "distill", "-o", "run", "--json", *SMALL)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["best"]["val_top1"] is None
    assert 0 <= summary["best"]["val_agreement"] <= 1
    assert summary["data"]["labelled"] is False


def test_a_plain_checkpoint_is_distilled_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    converted = CliRunner().invoke(main, ["test_resnet", "--weights", "trained.safetensors", "--to", "gn"])
    assert converted.exit_code == 0, converted.stderr
    args = ["test_resnet-gn.safetensors", "--data", "data/train", "--unlabelled", "--val-split", "0.25", *SMALL]
    args += ["--recipe", "distill", "-o", "run"]
    assert "name its source with --teacher" in fails(*args)
    result = run(*args, "--teacher", "test_resnet", "--weights", "trained.safetensors", "--train", "norm")
    assert result.exit_code == 0, result.stderr
    assert "same class as the teacher" in result.stdout
    before, after = (ilmconvert.load(path).state_dict() for path in (args[0], "run/last.safetensors"))
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert moved
    assert all(before[key].ndim == 1 for key in moved)


def test_resume_of_a_finished_run_gives_its_result() -> None:
    first = start("-o", "run", "--json")
    before = {path: path.read_bytes() for path in Path("run").glob("*.safetensors")}
    assert start("-o", "run").exit_code == 2
    again = start("-o", "run", "--json", "--resume")
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert {path: path.read_bytes() for path in before} == before
    other = start("-o", "run", "--resume", "--weight-decay", "0.5")
    assert other.exit_code == 2
    assert "weight_decay" in other.stderr


def test_dry_run_writes_nothing() -> None:
    result = start("-o", "run", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "Nothing was written" in result.stdout
    assert "12 to train, 6 to validate" in result.stdout
    assert "6 steps, 3 batches an epoch" in result.stdout
    assert not Path("run").exists()


def test_without_validation_images() -> None:
    result = run(
        "test_resnet",
        "--weights",
        "trained.safetensors",
        "--data",
        "data/train",
        "--num-classes",
        "2",
        "-o",
        "run",
        *SMALL,
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("Warning: no validation images")
    assert "no validation images" in result.stdout
    assert "the head is new" not in result.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_show_config_is_read_back(name: str) -> None:
    rate = "lr_base" if RECIPES[name].lr is None else "lr"
    options = ["test_resnet", "--recipe", name, f"--{rate.replace('_', '-')}", "1e-2", "--patience", "3"]
    options += ["--clip-grad", "none"]
    options += ["--model-arg", "in_chans=3", "--model-arg", "act_layer=silu"]
    options += ["--data", "a: b", "--val-split", "0.25", "--log-with", "none", "--unlabelled", "-o", "run..."]
    result = run("--show-config", *options)
    assert result.exit_code == 0, result.stderr
    Path("mine.yaml").write_text(result.stdout)
    expected = get_recipe(name, **{rate: 0.01}, patience=3, clip_grad=None)
    assert get_recipe("mine.yaml") == expected
    assert f"learning rate of the optimizer: {expected.learning_rate:g}" in result.stdout
    assert run("--show-config", "--config", "mine.yaml").stdout == result.stdout
    shown = yaml.safe_load(result.stdout)["finetune"]
    assert (shown["model"], shown["data"], shown["output"]) == ("test_resnet", "a: b", "run...")
    assert shown["model-arg"] == ["in_chans=3", 'act_layer="silu"']
    assert (shown["val-split"], shown["log-with"], shown["unlabelled"]) == (0.25, ["none"], True)
    for flag in ("resume", "json", "dry-run", "show-config", "find-batch-size", "quiet", "config"):
        assert flag not in shown


def test_options_win_over_a_recipe_file_and_its_name_stays() -> None:
    Path("mine.yaml").write_text("base: anneal\npatience: 5\nscale: [0.1, 1]\namp: bf16\nhflip: 0\n")
    options = ["--patience", "none", "--scale", "0.2", "0.3", "--amp", "no", "--no-aug", "--torchcompile"]
    text = run("--show-config", "--recipe", "mine.yaml", *options).stdout
    shown = yaml.safe_load(text)["finetune"]
    assert (shown["patience"], shown["scale"], shown["amp"], shown["hflip"]) == (None, [0.2, 0.3], "no", 0)
    assert (shown["no-aug"], shown["compile"], shown["anneal"]) == (True, True, "cosine")
    assert shown["recipe-name"] == "mine"
    Path("mine.yaml").unlink()  # the file of the run stands for itself
    Path("run.yaml").write_text(text)
    assert run("--show-config", "--config", "run.yaml").stdout == text
    assert get_recipe("run.yaml").name == "mine"


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ([], ("adamw", 3e-4)),
        (["--opt", "lamb"], ("lamb", 3e-4)),
        (["--opt", "sgd"], ("sgd", None)),
        (["--opt", "sgd", "--lr", "0.01"], ("sgd", 0.01)),
        (["--opt", "momentum", "--lr-base", "0.2"], ("momentum", None)),
    ],
)
@pytest.mark.parametrize("kept", ["recipe: first-norm", "recipe: first-norm, opt: adamw", "opt: adamw"])
def test_a_rate_on_the_command_line_is_not_hidden_by_the_files(
    options: list[str], rates: tuple[str, float], kept: str
) -> None:
    Path("run.yaml").write_text(f"finetune: {{model: test_resnet, {kept}, lr: 3.0e-4}}\n")
    result = run("--show-config", "--config", "run.yaml", *options)
    assert result.exit_code == 0, result.stderr
    shown = yaml.safe_load(result.stdout)["finetune"]
    assert (shown["opt"], shown["lr"]) == rates
    assert "give adamw one of its own" in fails("--config", "run.yaml", "--lr-base", "0.2")


def test_a_run_is_repeated_by_the_file_in_its_folder() -> None:
    first = start("-o", "run", "--json", "--no-aug")
    kept = Path("run/run.yaml").read_text()
    args = [
        "test_resnet",
        "--weights",
        "trained.safetensors",
        "--data",
        "data",
        "--num-classes",
        "2",
        "--no-aug",
        *SMALL,
    ]
    assert run(*args, "-o", "run", "--show-config").stdout == kept
    assert "holds a run already" in fails("--config", "run/run.yaml")
    assert json.loads(run("--config", "run/run.yaml", "--resume", "--json").stdout) == json.loads(first.stdout)
    assert run("--config", "run/run.yaml", "-o", "again").exit_code == 0
    assert Path("again/last.safetensors").read_bytes() == Path("run/last.safetensors").read_bytes()
    config = yaml.safe_load(Path("again/config.yaml").read_text())
    assert config == yaml.safe_load(Path("run/config.yaml").read_text())
    assert get_recipe("run/run.yaml").to_dict() | {"amp": "no"} == config["recipe"]


def test_inspect_shows_a_run_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert start("-o", "run", "--seed", "3").exit_code == 0
    shown = CliRunner().invoke(main, ["inspect", "run/last.safetensors"]).stdout
    rows = {
        cells[0]: cells[1]
        for line in shown.splitlines()
        if len(cells := [c.strip() for c in line.split("│")[1:-1]]) == 2
    }
    changed = "batch_size 4, epochs 2, input_size 48, lr 0.001, seed 3, workers 0"
    assert rows["fine-tuned with"].replace("amp no, ", "") == f"recipe full: {changed}"
    assert rows["trained on: classes"] == "blue, red"
    assert rows["trained on: input_size"] == "3 48 48"
    assert (rows["trained to: epoch"], rows["trained to: step"]) == ("2", "6")
    assert not set("{}'[]") & set(shown)


def test_every_field_is_an_option_in_a_section() -> None:
    options = {name for p in module.finetune.params for name in (*p.opts, *p.secondary_opts)}
    text = CliRunner().invoke(main, ["finetune", "--help"], terminal_width=100).stdout
    for name, (_, about, _) in settings_of(Recipe).items():
        assert f"--{name.replace('_', '-')}" in options
        assert f"Recipe: {about.section.lower()}:" in text
    assert not options & {"--name"}
    assert options >= TIMM_NAMES


def test_help_needs_no_torch() -> None:
    code = "import sys; from ilmconvert.cli import main\ntry: main(['finetune', '--help'])\n"
    code += "finally: print({'torch', 'timm', 'yaml', 'accelerate'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "set()", result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "data", "-o", "run"], "name a checkpoint or a model"),
        (["test_resnet", "-o", "run"], "add --data"),
        (["test_resnet", "--data", "data"], "add --output"),
        (["test_resnet", "--data", "nowhere", "-o", "run"], "nowhere isn't a folder"),
        (["test_resnet", "--data", "data", "-o", "run", "--epochs", "0"], "--epochs has to be at least 1, not 0"),
        (["test_resnet", "--data", "data", "-o", "run", "--head-lr-scale", "x"], "--head-lr-scale has to be a number"),
        (["test_resnet", "--data", "data", "-o", "run", "--recipe", "nrom"], "did you mean norm?"),
        (["test_resnet", "--data", "data", "-o", "run", "--val-split", "2"], "between 0 and 1"),
        (["test_resnet", "--data", "data/train", "-o", "run", "--val-split", "x"], "x"),
        (["tets_resnet", "--data", "data", "-o", "run"], "test_resnet"),
    ],
)
def test_refused_in_one_line(args: list[str], message: str) -> None:
    assert message in fails(*args)
    assert not Path("run").exists()


def test_a_head_of_another_size_is_refused() -> None:
    assert "--num-classes 2" in fails("test_resnet", "--weights", "trained.safetensors", "--data", "data", "-o", "run")


def test_find_batch_size() -> None:
    args = ["--weights", "trained.safetensors", "--input-size", "64", "--find-batch-size"]
    small = json.loads(run("test_resnet", *args, "--json").stdout)["batch_size"]
    assert small >= 1
    assert run("test_resnet", *args).stdout == f"--batch-size {small}\n"


def test_find_batch_size_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilmconvert.cli._progress.PATIENCE", 0.0)
    args = ["test_resnet", "--weights", "trained.safetensors", "--input-size", "64", "--find-batch-size"]
    said = run(*args).stderr.splitlines()
    assert said[0] == "loading test_resnet"
    assert said[-1] == "measuring what an image needs"
    assert run(*args, "--quiet").stderr == ""


def test_find_batch_size_says_each_size_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).to("meta")
    monkeypatch.setattr("ilmconvert.finetune.batch_size._fits", lambda network, optimizer, size, *rest: size <= 4)
    assert find_batch_size(model, Recipe(), (3, 2, 2), device="meta", progress=said.append) == 4
    assert said == [f"trying {size} images on meta" for size in (2, 4, 8)]


def test_options_of_the_data_and_the_model_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stop(model: Any, data: Any, recipe: Recipe, **arguments: Any) -> None:
        seen.update(arguments, model=model, data=data, recipe=recipe)
        raise click.ClickException("enough")

    monkeypatch.setattr("ilmconvert.finetune.engine.finetune", stop)
    monkeypatch.setattr("ilmconvert.finetune.finetune", stop, raising=False)
    args = ["--data", "data/train", "--val-split", "0.5", "--seed", "3", "--teacher", "resnet18", "--init", "moments"]
    args += ["--baseline", "train-bn", "--baseline", "train-bn", "--log-with", "wandb", "--log-with", "trackio"]
    assert "enough" in fails("test_resnet", "-o", "run", *args)
    expected = open_data("data/train", val_split=0.5, seed=3)
    assert seen["data"].description == expected.description
    assert (seen["teacher"], seen["recipe"].init, seen["recipe"].seed) == ("resnet18", "moments", 3)
    assert seen["baselines"] == ("train-bn",)
    assert seen["log_with"] == ["wandb", "trackio"]


def test_interrupted_runs_say_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilmconvert.finetune.engine.finetune", interrupt)
    monkeypatch.setattr("ilmconvert.finetune.finetune", interrupt, raising=False)
    result = run("test_resnet", "--data", "data", "-o", "run")
    assert result.exit_code == EXIT_INTERRUPTED
    assert "--resume continues the run" in result.stderr


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (["torch.distributed.run", "--nproc_per_node", "2"], 2),
        # accelerate starts several processes on GPUs only; on CPUs torchrun does
        (["accelerate.commands.launch", "--cpu", "--num_processes", "1"], 1),
    ],
    ids=["torchrun", "accelerate"],
)
@pytest.mark.slow
def test_launchers(launcher: list[str], processes: int) -> None:
    command = [sys.executable, "-m", *launcher, "-m", "ilmconvert", "finetune", "test_resnet", "--weights", "none"]
    options = ["--data", "data", "--num-classes", "2", "-o", "run", *SMALL, "--dry-run", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run([*command, *options], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)  # printed by one process
    assert (summary["processes"], summary["steps"]) == (processes, 6)
    assert result.stderr.count("never trained") == 1


def test_numbers_of_the_bar() -> None:
    assert numbers(Progress("", 1, 2, 3, 6, 0.5, 0.25, 0.1, 12.0, 61.0)) == (
        "loss 0.500  top-1 25.0 %  12 img/s  1 min 1 s left"
    )
    assert numbers(Progress("", 1, 2, 3, 6, None, None, 0.1, 0.34, None)) == "0.3 img/s"
    assert numbers(Progress("", 1, 2, 3, 6, None, None, 0.1, None, None)) == ""


EPOCH = (
    r"epoch (\d)/2: loss [\d.]+, top-1 [\d.]+ %, val loss [\d.]+, val top-1 [\d.]+ %( \(best\))?, "
    r"\d+(\.\d)? img/s(, 0:\d\d:\d\d left)?"
)


def test_off_a_terminal_an_epoch_is_a_line() -> None:
    result = start("-o", "run", "--json", "--baseline", "frozen-bn")
    json.loads(result.stdout)
    begin, one, two, other, *rest = result.stderr.splitlines()
    assert begin == "test_resnet, recipe full: 2 epochs of 3 batches of 4 images on cpu"
    assert other == f"frozen-bn: {begin}"
    for number, lines in enumerate(((one, rest[0]), (two, rest[1])), start=1):
        for name, line in zip(("", "frozen-bn: "), lines, strict=True):
            found = re.fullmatch(name + EPOCH, line)
            assert found, line
            assert found[1] == str(number)
            assert (found[4] is None) == (number == 2), "after the last epoch no time is left"
    assert len(rest) == 2
    with Path("run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, (one, two), strict=True):
        assert f"loss {float(row['train_loss']):.3f}," in line
        assert f"val top-1 {100 * float(row['val_top1']):.1f} %" in line


def test_quiet_runs_say_nothing_on_the_way() -> None:
    assert start("-o", "run", "--quiet").stderr == ""


def test_a_resumed_run_says_where_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ilmconvert.finetune.trainer import Trainer

    finish = Trainer._finish_epoch

    def stop(self: Trainer, provenance: Any) -> bool:
        if self.position.epoch == 1:
            raise KeyboardInterrupt
        return finish(self, provenance)

    monkeypatch.setattr(Trainer, "_finish_epoch", stop)
    assert start("-o", "run").exit_code == EXIT_INTERRUPTED
    monkeypatch.setattr(Trainer, "_finish_epoch", finish)
    begin, epoch = start("-o", "run", "--resume").stderr.splitlines()
    assert begin.endswith("on cpu; goes on after step 3")
    assert epoch.startswith("epoch 2/2: ")


class Terminal(io.TextIOWrapper):
    """Keeps what a terminal would show; with a buffer below it, as the real stderr."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.bytes.getvalue().decode()):
            if part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif part == "\r":
                column = 0
            elif part.startswith("\x1b"):
                row -= int(part[2:-1] or 1) if part.endswith("A") else 0
                lines[row] = "" if part.endswith("K") else lines[row]
            else:
                old = lines[row].ljust(column)
                lines[row] = old[:column] + part + old[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines]


def test_on_a_terminal_finished_epochs_stay_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal)
    logger = logging.getLogger("ilmconvert.finetune.run_log")
    with library_warnings(), bar() as update:
        assert update is not None
        for epoch in (1, 2):
            for step in (1, 2, 3):
                update(Progress("", epoch, 2, 3 * epoch - 3 + step, 6, 0.5, 0.25, 0.1, 12.0, 61.0))
            logger.info("epoch %d/2: all is well", epoch)
    shown = terminal.screen()
    assert shown[:2] == ["epoch 1/2: all is well", "epoch 2/2: all is well"]
    assert shown[2].startswith("epoch 2/2 ")
    assert shown[2].endswith("loss 0.500  top-1 25.0 %  12 img/s  1 min 1 s left")
    assert set(shown[3:]) == {""}


def test_there_is_no_bar_off_a_terminal() -> None:
    with bar() as update:
        assert update is None
    with bar(enabled=False) as update:
        assert update is None


def test_the_run_ends_with_ilm_norms() -> None:
    assert start("-o", "run", "--recipe", "anneal", "--to", "ilm_ln").exit_code == 0
    layers = [m for m in ilmconvert.load("run/last.safetensors").modules() if isinstance(m, ILMNorm)]
    assert layers
    assert {m.num_groups for m in layers} == {1}
    assert not any(m.restore for m in layers)


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['accelerate'] = None; from ilmconvert.cli import main; main()"
    command = [sys.executable, "-c", code, "finetune", "test_resnet", "--data", "nowhere", "-o", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["Error: fine-tuning needs accelerate: pip install 'ilmconvert[finetune]'"]
    assert not (tmp_path / "run").exists()
