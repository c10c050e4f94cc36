"""What a user meets in the first hour: what a checkpoint knows, messages that can be followed, errors of one line."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import ilmconvert
from ilmconvert.cli import COMMANDS
from ilmconvert.cli._exit import EXIT_CODES, EXIT_NOT_COMPARED
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.data.trained_images import trained_classes, trained_transform
from ilmconvert.data.transforms import transform_config
from ilmconvert.errors import ConversionError
from ilmconvert.models.create import create_model
from ilmconvert.models.weight_files import sha256
from tests.cli.commands import fails, options_of, run
from tests.finetune.finetune_jobs import CLASSES, image
from tests.helpers import ROOT, randomize_norms

SIZE, NAMES = 40, ["ant", "bee", "cat", "dog"]
DATA = {
    "classes": NAMES,
    "input_size": [3, SIZE, SIZE],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "crop_pct": 0.5,
    "interpolation": "bilinear",
}


@pytest.fixture
def data(folder: Path) -> Path:
    """Four class folders."""
    for label, name in enumerate(NAMES):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(2):
            image(label, number).save(folder / "data" / name / f"{number}.png")
    return Path("data")


@pytest.fixture
def tuned(folder: Path) -> Path:
    """The folder of a run: a network that says that it was trained on small images of four classes."""
    torch.manual_seed(0)
    model = randomize_norms(create_model("test_resnet", weights="none", num_classes=CLASSES), scale=0.3)
    (folder / "run").mkdir()
    provenance = {"weights": "none", "finetuned": {"data": DATA, "epoch": 1}}
    ilmconvert.save(ilmconvert.convert(model), folder / "run" / "best.safetensors", provenance=provenance)
    return Path("run")


@pytest.fixture
def exact(trained: Path) -> Path:
    """A conversion of weights that lie beside it."""
    assert run("test_resnet", "--weights", str(trained), "-o", "exact.safetensors").exit_code == 0
    return Path("exact.safetensors")


def found(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_what_the_checkpoint_knows_of_its_images_is_the_default_and_is_printed(tuned: Path, data: Path) -> None:
    own = found("evaluate", "run", "--data", "data")
    given = found("evaluate", "run", "--data", "data", "--input-size", str(SIZE))
    other = found("evaluate", "run", "--data", "data", "--input-size", "64")
    assert own["loss"] == given["loss"] != other["loss"]
    assert own["input"]["input_size"] == [3, SIZE, SIZE]
    assert own["input"]["mean"] == DATA["mean"]
    assert "3 x 40 x 40, crop 0.5" in " ".join(run("evaluate", "run", "--data", "data").stdout.split())
    model = ilmconvert.load("run")
    config = transform_config(model)
    assert {key: config[key] for key in ("crop_pct", "std")} == {"crop_pct": 0.5, "std": (0.4, 0.5, 0.6)}
    assert example_inputs(model)[0].shape == (2, 3, SIZE, SIZE)
    assert "traced with 2 x 3 x 40 x 40" in run("export", "run", "--format", "pt2", "--static").stdout


def test_a_model_card_folder_keeps_size_and_class_names_and_can_be_followed(tuned: Path, data: Path) -> None:
    assert run("export", "run", "--format", "hub", "-o", "card").exit_code == 0
    model = timm.create_model("local-dir:card", pretrained=True)
    cfg = model.pretrained_cfg
    assert list(cfg["label_names"]) == NAMES
    assert list(timm.data.resolve_model_data_config(model)["input_size"]) == DATA["input_size"]
    text = Path("card/README.md").read_text()
    commands: list[str] = re.findall(r"`(ilmconvert [^`]*)`", text)
    assert commands, text
    for command in commands:
        result = run(*shlex.split(command.replace("DATA", "data"))[1:])
        assert result.exit_code == 0, result.output
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    assert list(names["names"]) == NAMES


def test_settings_of_a_checkpoint_that_make_no_sense_are_left_out() -> None:
    from ilmconvert.surgery.conversion_info import note

    model = timm.create_model("test_resnet")
    for wrong in ({"input_size": [3, 10**9, 1]}, {"std": [0.0]}, {"crop_pct": "all"}, {"mean": 3}, {"classes": 4}):
        note(model, provenance={"finetuned": {"data": wrong}})
        assert (trained_transform(model), trained_classes(model)) == ({}, ())
    note(model, provenance={"finetuned": []})
    assert trained_transform(model) == {}


def test_evaluate_refuses_data_of_other_classes_than_the_heads(exact: Path, data: Path) -> None:
    message = fails("evaluate", "exact.safetensors", "--data", "data")
    assert "4 classes, fewer than the 1000 outputs" in message
    followed = run("evaluate", "exact.safetensors", "--data", "data", "--unlabelled", "--against", "exact.safetensors")
    assert followed.exit_code == 0, followed.output


def test_evaluate_warns_of_classes_with_other_names(tuned: Path, data: Path) -> None:
    (data / "ant").rename(data / "aardvark")
    assert (
        "count as those that the network was trained on (ant, bee, cat and 1 more)"
        in run("evaluate", "run", "--data", "data").stderr
    )


def test_every_option_that_the_package_names_is_one_of_a_command() -> None:
    known = set().union(*(options_of(name) for name in COMMANDS)) | {"--help", "--version", "--upgrade", "--local-dir"}
    for path in sorted((ROOT / "ilmconvert").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", node.value):
                    assert option in known, (path, option)


def test_random_weights_are_no_source_to_verify_with_and_are_not_proposed(exact: Path, trained: Path) -> None:
    Path("moved").mkdir()
    trained.rename("moved/trained.safetensors")
    result = run("verify", "exact.safetensors", "--input-size", "48", "--random-batches", "1")
    assert "none" not in result.stderr
    assert "--weights FILE" in result.stderr
    assert "random weights are no source" in fails("verify", "exact.safetensors", "--weights", "none")
    followed = ["--source", "test_resnet", "--weights", "moved/trained.safetensors"]
    assert run("verify", "exact.safetensors", *followed, "--random-batches", "1").exit_code == 0


def test_verify_without_its_source_has_a_verdict_and_an_exit_code_of_its_own(exact: Path, trained: Path) -> None:
    fast = ["--input-size", "48", "--random-batches", "1", "--batch-size", "2"]
    assert run("verify", "exact.safetensors", *fast).exit_code == 0
    trained.unlink()
    result = run("verify", "exact.safetensors", *fast)
    assert result.exit_code == EXIT_NOT_COMPARED
    assert "NOT COMPARED with the original source" in result.stdout
    assert "PASSED" not in result.stdout
    assert "no source" in EXIT_CODES[EXIT_NOT_COMPARED]
    assert f"`{EXIT_NOT_COMPARED}`" in (ROOT / "docs" / "cli.md").read_text()


def test_a_new_head_has_no_source_to_compare_with_and_the_cure_works(tuned: Path, data: Path, trained: Path) -> None:
    for more in ([], ["--model-arg", "num_classes=1000"]):
        message = fails("verify", "run", "--weights", str(trained), *more)
        assert "new head of 4 classes" in message
    cure = message.partition("with ilmconvert ")[2].replace("DATA", "data")
    assert run(*shlex.split(cure)).exit_code == 0


@pytest.mark.parametrize("weights", ["trained.safetensors", "default"])
def test_a_new_head_has_no_source_even_where_the_source_is_at_hand(
    weights: str, trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_download(
        name: str, architecture: str, args: dict[str, Any]
    ) -> tuple[torch.nn.Module, dict[str, Any], Any]:
        model = timm.create_model(architecture, **args)
        return model, {}, {"weights": "default"}

    monkeypatch.setattr("ilmconvert.models.timm_zoo.build_pretrained", without_download)
    model = ilmconvert.convert(randomize_norms(create_model("test_resnet", weights="none", num_classes=CLASSES)))
    provenance = {"weights": weights, "sha256": sha256(trained), "finetuned": {"data": DATA, "epoch": 1}}
    ilmconvert.save(model, "tuned.safetensors", provenance=provenance)
    message = fails("verify", "tuned.safetensors")
    assert "new head of 4 classes after its conversion, and the source has 1000" in message
    cure = message.partition("with ilmconvert ")[2].replace("DATA", "data")
    assert run(*shlex.split(cure)).exit_code == 0


def test_collapse_and_calibrate_answer_in_options(exact: Path, data: Path) -> None:
    assert "--data" in fails("collapse", "exact.safetensors")
    assert "--tolerance" in fails("collapse", "exact.safetensors", "--data", "data", "--input-size", "48")
    loose = ["--data", "data", "--input-size", "48", "--tolerance", "1e9"]
    assert run("collapse", "exact.safetensors", *loose).exit_code == 0


def test_weights_of_another_model_name_an_argument_that_the_command_takes(trained: Path, data: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), "four.safetensors")
    for command in (["convert", "test_resnet"], ["evaluate", "test_resnet", "--data", "data"]):
        message = fails(*command, "--weights", "four.safetensors")
        cure = re.search(r"\((--model-arg [^)]*)\)", message)
        assert cure is not None
        assert run(*command, "--weights", "four.safetensors", *cure[1].split()).exit_code == 0
    missing = fails("evaluate", "test_resnet", "--weights", "four.safetensors", "--model-arg", "num_classes=4",
                    "--data", "data", "--against", "test_resnet", "--against-weights", "four.safetensors",
                    "--model-arg", "in_chans=1")  # fmt: skip
    assert "in_chans" in missing


@pytest.mark.parametrize(
    "args",
    [
        ["finetune", "test_resnet", "--auto-augment", "rand9"],
        ["finetune", "test_resnet", "--auto-augment", "nonsense"],
        ["finetune", "test_resnet", "--auto-augment", "augmix-q1"],
        ["finetune", "test_resnet", "--opt", "adamm"],
        ["finetune", "test_resnet", "--recipe", "nowhere.yaml"],
        ["finetune", "test_resnet", "--recipe", "fulll"],
        ["finetune", "test_resnet", "--teacher", "nobody", "--recipe", "distill"],
        ["finetune", "test_resnet", "--val-split", "7"],
        ["finetune", "test_resnet", "--val-split", "nowhere"],
        ["finetune", "test_resnet", "--log-with", "wandbb"],
        ["finetune", "test_resnet", "--model-arg", "num_clases=4"],
        ["finetune", "data", "--recipe", "full"],
        ["evaluate", "test_resnet", "--device", "toaster", "--model-arg", "num_classes=4"],
        ["evaluate", "test_resnet", "--device", "xpu", "--model-arg", "num_classes=4"],
        ["evaluate", "data"],
        ["evaluate", "test_resnet", "--model-arg", "num_classes=x"],
        ["calibrate", "data"],
        ["collapse", "data"],
        ["robustness", "data"],
    ],
    ids=" ".join,
)
def test_a_wrong_value_ends_in_one_line(args: list[str], data: Path) -> None:
    more = {"finetune": ["-o", "run", "--num-classes", "4", "--weights", "none"], "evaluate": ["--weights", "none"]}
    line = fails(*args, "--data", "data", *more.get(args[0], []))
    assert "Traceback" not in line
    assert not re.search(r"\b(Errno|AssertionError|KeyError|AttributeError)\b", line)


@pytest.mark.parametrize("command", ["verify", "inspect", "export", "apply", "report", "convert", "plan", "evaluate"])
def test_a_folder_or_file_that_is_no_checkpoint_ends_in_one_line(command: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "text.safetensors").write_text("not tensors")
    for place in ("empty", "text.safetensors", "nowhere/at/all", "a:b"):
        line = fails(command, place, *(["--data", "empty"] if command == "evaluate" else []))
        assert "Errno" not in line


def test_a_name_in_the_place_of_a_module_is_refused_in_one_line() -> None:
    for call in (ilmconvert.convert, ilmconvert.plan, ilmconvert.info):
        with pytest.raises(ConversionError, match=r"'resnet18' is a name.*create_model\('resnet18'\) builds one"):
            call("resnet18")  # type: ignore[operator]
    with pytest.raises(ConversionError, match="not an object of type dict"):
        ilmconvert.convert({})  # type: ignore[arg-type]


def test_an_unforeseen_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("ilmconvert.checkpoint.save_load.read_header", broken)
    result = run("inspect", "x")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "unexpected ZeroDivisionError: one two; add --verbose" in result.stderr
    assert "Traceback" in run("inspect", "x", "--verbose").stderr


def test_resume_of_a_misspelt_folder_is_refused_with_the_folder_that_is_meant(data: Path) -> None:
    Path("run1").mkdir()
    Path("run1/config.yaml").write_text("{}")
    common = ["finetune", "test_resnet", "--data", "data", "--resume"]
    assert "no run in run11 to resume; did you mean run1?" in fails(*common, "-o", "run11")
    assert "(without --resume a new run starts there)" in fails(*common, "-o", "other")
    assert not Path("run11").exists()


def test_folders_stand_for_the_checkpoint_in_them(tuned: Path, data: Path, exact: Path) -> None:
    assert run("export", "exact.safetensors", "--format", "hub", "-o", "hub").exit_code == 0
    fast = ["--input-size", "48", "--random-batches", "1"]
    assert run("verify", "hub", *fast, "--source", "test_resnet", "--weights", "trained.safetensors").exit_code == 0
    assert run("verify", "exact.safetensors", *fast, "--source", "hub").exit_code == 0
    for place in ("hub", "run"):
        assert run("inspect", place).exit_code == 0
        assert run("export", place, "--format", "pt2").exit_code == 0
    assert Path("run/best.pt2").is_file()
    assert Path("hub.pt2").is_file()  # beside what is published as a whole
    evaluated = ["evaluate", "run", "--data", "data", "--against"]
    assert run(*evaluated, "run").exit_code == 0
    dry = run("finetune", "run", "--data", "data", "-o", "new", "-b", "4", "--dry-run", "-j", "0")
    assert dry.exit_code == 0, dry.output


def test_what_is_converted_already_or_only_weights_is_said(exact: Path, trained: Path, tuned: Path) -> None:
    for place in ("exact.safetensors", "run"):
        message = fails(place)
        assert "is a checkpoint of ilmconvert already" in message
        command = re.search(r"ilmconvert (inspect \S+)", message)
        assert command is not None
        assert run(*command[1].split()).exit_code == 0
    for command in ([], ["plan"], ["inspect"], ["export"]):
        message = fails(*command, "trained.safetensors")
        assert "ilmconvert MODEL --weights trained.safetensors" in message
    assert run("test_resnet", "--weights", "trained.safetensors", "-o", "other.safetensors").exit_code == 0


def test_a_folder_with_the_name_of_a_model_does_not_hide_the_model(folder: Path) -> None:
    (folder / "test_resnet").mkdir()
    assert run("plan", "test_resnet").exit_code == 0


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18"])
def test_a_misspelt_model_argument_is_corrected(name: str) -> None:
    for command in ("convert", "plan"):
        assert "did you mean num_classes?" in fails(command, name, "--model-arg", "num_clases=10")
    assert run("plan", name, "--model-arg", "num_classes=10").exit_code == 0


def test_a_dry_run_tells_the_class_names(data: Path) -> None:
    common = [
        "--num-classes",
        "4",
        "--weights",
        "none",
        "-b",
        "4",
        "-j",
        "0",
        "--input-size",
        "32",
        "--log-with",
        "none",
    ]
    result = run("finetune", "test_resnet", "--data", "data", "-o", "new", "--dry-run", *common)
    assert "4: ant, bee, cat, dog" in result.stdout, result.output


def test_a_missing_tracker_has_a_pip_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilmconvert.finetune.devices.get_available_trackers", list)
    common = ["finetune", "test_resnet", "--data", "data", "-o", "new", "--num-classes", "4", "--weights", "none"]
    assert "pip install wandb" in fails(*common, "--log-with", "wandb")
    assert "did you mean wandb?" in fails(*common, "--log-with", "wandbb")


def test_a_launcher_that_restarts_may_resume_what_was_not_started_yet(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["finetune", "test_resnet", "--data", "data", "-o", "run", "--num-classes", "4", "--weights", "none"]
    words += ["-b", "4", "-j", "0", "--input-size", "32", "--epochs", "1", "--log-with", "none", "--resume"]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert "no run in run to resume" in fails(*words)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "there is no run in run to resume, so one starts there" in result.stderr
    assert "so one starts there" not in run(*words).stderr


def test_a_bound_without_a_restoring_path_is_refused_by_finetune_too(data: Path) -> None:
    words = ["finetune", "test_resnet", "--weights", "none", "--num-classes", "4", "--data", "data", "-o", "new"]
    message = fails(*words, "--init", "moments", "--restore-bound", "2")
    assert "--restore-bound" in message
    assert "--init identity" in message
    assert not Path("new").exists()


def test_a_delta_names_the_command_that_reads_it(exact: Path) -> None:
    assert run("export", "exact.safetensors", "--format", "delta").exit_code == 0
    for command in ("inspect", "verify", "undo"):
        cure = re.search(r"by ilmconvert (apply \S+)", fails(command, "exact.delta.safetensors"))
        assert cure is not None
    assert run(*cure[1].split(), "--force").exit_code == 0
    assert "a whole checkpoint is used as it is" in fails("apply", "exact.safetensors", "-o", "other.safetensors")


@pytest.mark.parametrize(
    "more", ["--to ilm_ln", "--init moments", "--first-only", "--model-arg in_chans=1", "--weights none"]
)
def test_options_that_a_checkpoint_has_no_use_for_are_refused(more: str, tuned: Path, data: Path) -> None:
    option = more.split()[0]
    message = fails("finetune", "run", "--data", "data", "-o", "new", *more.split())
    assert message.endswith(f"run is a checkpoint, whose model and weights are settled; leave out {option}")
    if option in options_of("evaluate"):
        assert message == fails("evaluate", "run", "--data", "data", *more.split())
        assert run("evaluate", "run", "--data", "data").exit_code == 0
