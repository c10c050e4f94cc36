"""What all commands have in common: examples, completion, verbosity, options from a file, exit codes."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from ilmconvert.cli import COMMANDS, main
from ilmconvert.cli._exit import EXIT_CODES, EXIT_INTERRUPTED, EXIT_PIPE
from ilmconvert.finetune.recipe import get_recipe
from tests.cli.commands import fails, run

PROGRAM = [sys.executable, "-m", "ilmconvert"]


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def examples(of: click.Command) -> list[list[str]]:
    """The words of each line below "Examples:" in a command's help."""
    _, _, block = inspect.cleandoc(of.help or "").partition("\b\nExamples:\n")
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name: str) -> None:
    Path("pets.yaml").write_text("finetune: {data: pets}")
    lines = examples(command(name))
    assert lines
    for words in lines:
        words = words[words.index("ilmconvert") + 1 :]
        words = words[: words.index(">")] if ">" in words else words
        chosen, *rest = main.with_command(click.Context(main), words)
        assert chosen == name
        command(name).make_context(name, rest, parent=click.Context(main))


def test_the_examples_of_the_program_parse() -> None:
    lines = examples(main)
    assert len(lines) >= 3
    for words in lines:
        main.make_context("ilmconvert", words[1:])


# --- completion ---


def completions(*words: str) -> list[tuple[str, str]]:
    """Kind and text of what is offered for the last word."""
    found = ShellComplete(main, {}, "ilmconvert", "_ILMCONVERT_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [(item.type, item.value) for item in found]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pla"], ("plain", "plan")),
        (["resnet5"], ("plain", "resnet50")),
        (["torchv"], ("plain", "torchvision/")),
        (["torchvision/resnet1"], ("plain", "torchvision/resnet18")),
        (["plan", "efficientnet_b"], ("plain", "efficientnet_b0")),
        (["--quiet", "plan", "efficientnet_b"], ("plain", "efficientnet_b0")),
        (["convert", "resnet50", "--to", "ilm_"], ("plain", "ilm_gn")),
        (["resnet50", "--to", "ilm_"], ("plain", "ilm_gn")),
        (["resnet50", "--wei"], ("plain", "--weights")),
        (["finetune", "resnet5"], ("plain", "resnet50")),
        (["finetune", "./"], ("file", "./")),
        (["inspect", ""], ("file", "")),
        (["--ver"], ("plain", "--version")),
    ],
)
def test_completion_offers(words: list[str], offered: tuple[str, str]) -> None:
    assert offered in completions(*words)


def test_completion_offers_no_model_without_a_norm_layer() -> None:
    assert ("plain", "test_resnet") in completions("test_")
    assert ("plain", "test_vit") not in completions("test_")


def test_completion_and_help_of_no_command_load_torch() -> None:
    code = (
        "import sys, click\n"
        "from ilmconvert.cli import COMMANDS, main\n"
        "from click.shell_completion import ShellComplete\n"
        "complete = ShellComplete(main, {}, 'ilmconvert', 'X').get_completions\n"
        "assert complete([], 'resnet5')\n"
        "for name in COMMANDS:\n"
        "    assert complete([name], '--'), name\n"
        "    main.get_command(click.Context(main), name).get_help(click.Context(main))\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_in_a_real_bash(folder: Path) -> None:
    program = folder / "ilmconvert"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash").stdout
    use = "COMP_WORDS=(ilmconvert plan resnet10); COMP_CWORD=2; _ilmconvert_completion ilmconvert"
    shell = f'{script}\n{use}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment, check=False)
    assert {"resnet101", "resnet101d"} <= set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_ILMCONVERT_COMPLETE" in script
    assert "ilmconvert" in script


# --- quiet, verbose, colours ---


@pytest.mark.parametrize(
    "args", [["-q", "test_resnet"], ["test_resnet", "--quiet"], ["convert", "test_resnet", "-q"]], ids=str
)
def test_quiet_drops_warnings_wherever_it_stands(args: list[str]) -> None:
    loud = run("test_resnet", "--weights", "none", "-o", "loud.safetensors")
    assert loud.stderr.startswith("Warning: ")
    result = run(*args, "--weights", "none")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Wrote test_resnet-ilm_gn.safetensors" in result.stdout


def test_quiet_keeps_errors() -> None:
    assert "did you mean resnet50" in fails("--quiet", "resnet5o")


def test_verbose_says_where_an_error_arises() -> None:
    result = run("plan", "resnet5o", "--verbose")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: unknown model")


def test_verbose_shows_what_libraries_log_and_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(*args: Any, **kwargs: Any) -> None:
        import logging
        import warnings

        logging.getLogger("timm.models").info("reading weights")
        warnings.warn_explicit("an odd thing", UserWarning, "/elsewhere/timm/x.py", 1)

    monkeypatch.setattr("ilmconvert.checkpoint.save_load.read_header", speak)
    monkeypatch.setattr("ilmconvert.cli.inspect._rows", lambda header: [("a", "b")])
    assert run("inspect", "x").stderr == ""
    assert run("inspect", "x", "-v").stderr == "timm.models: reading weights\nWarning: an odd thing\n"
    assert run("inspect", "x").stderr == ""


def test_quiet_and_verbose_exclude_each_other() -> None:
    assert "exclude each other" in fails("--quiet", "list", "--verbose")


@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured(value: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    monkeypatch.setattr("ilmconvert.checkpoint.save_load.read_header", lambda path: click.secho("red", fg="red"))
    monkeypatch.setattr("ilmconvert.cli.inspect._rows", lambda header: [("a", "b")])
    result = CliRunner().invoke(main, ["inspect", "x"], color=True if coloured else None)
    assert ("\x1b[31m" in result.stdout) == coloured


# --- options from a file ---


def configured(text: str, *args: str) -> Any:
    Path("run.yaml").write_text(text)
    return run("--config", "run.yaml", *args)


def test_options_come_from_the_file_and_the_command_line_counts_more() -> None:
    text = "plan:\n  to: ilm_ln\n  exclude: ['layer1*', 'layer2*']\n  json: true\n  restore-bound: 2.5\n"
    data = json.loads(configured(text, "plan", "test_resnet").stdout)
    assert data["settings"]["to"] == "ilm_ln"
    assert data["settings"]["exclude"] == ["layer1*", "layer2*"]
    assert data["settings"]["restore_bound"] == 2.5
    given = ["plan", "test_resnet", "--to", "ilm_gn", "--exclude", "layer3*"]
    data = json.loads(configured(text, *given).stdout)
    assert data["settings"]["to"] == "ilm_gn"
    assert data["settings"]["exclude"] == ["layer3*"]


def test_the_file_can_be_named_after_the_command_and_serves_others_too(folder: Path) -> None:
    Path("run.yaml").write_text("convert: {weights: none, output: x.safetensors}\nplan: {json: true}\n")
    assert run("test_resnet", "--config", "run.yaml", "-q").exit_code == 0
    assert (folder / "x.safetensors").exists()
    assert json.loads(run("plan", "test_resnet", "--config", "run.yaml").stdout)["layers"]["converted"] == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plam: {to: ilm_ln}", "there is no command 'plam'; did you mean plan?"),
        ("plan: {excludes: [a]}", "plan has no option 'excludes'; did you mean exclude?"),
        ("plan: {config: x}", "plan has no option 'config'"),
        ("plan: {to: batch_norm}", "plan: to: 'batch_norm' is not one of"),
        ("plan: {num-groups: many}", "plan: num-groups: 'many' is not a valid"),
        ("plan: {num-groups: 0}", "plan: num-groups: 0 is not in the range"),
        ("plan: {json: please}", "json takes true or false"),
        ("plan: {to: true}", "to takes a value"),
        ("plan: {exclude: layer1}", "exclude takes a list"),
        ("plan: {to: [ilm_gn]}", "to takes one value"),
        ("plan: 3", "plan has to hold options"),
        ("- plan", "has to hold a section a command"),
        ("plan: [", "run.yaml can't be read as YAML"),
        ("plan: {to: ilm_ln, to: ilm_gn}", "to is there twice (line 1); leave one of them out"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    assert message in fails("--config", "run.yaml", "plan", "test_resnet")


def test_a_missing_file_is_one_line() -> None:
    assert "can't read no.yaml: No such file" in fails("plan", "test_resnet", "--config", "no.yaml")


def recipe_of(text: str, *args: str) -> dict[str, Any]:
    shown = configured(text, "finetune", *args, "--show-config")
    assert shown.exit_code == 0, shown.stderr
    found: dict[str, Any] = yaml.safe_load(shown.stdout)["finetune"]
    return found


def test_a_run_is_one_file_of_options_and_fields() -> None:
    text = """
    finetune:
      model: test_resnet
      data: pets
      recipe: distill
      epochs: 3
      batch_size: 8
      lr: 1e-3
      kd-temperature: 4
      clip-grad: null
      amp: no
      scale: [0.5, 1]
      no-aug: true
      baseline: [train-bn]
    """
    found = recipe_of(text)
    expected = get_recipe(
        "distill",
        epochs=3,
        batch_size=8,
        lr=1e-3,
        temperature=4.0,
        clip_grad=None,
        amp="no",
        scale=(0.5, 1),
        no_aug=True,
    )
    assert {key.replace("-", "_"): found[key] for key in found}.items() >= {
        **{key: value for key, value in expected.to_dict().items() if key != "name"},
        "model": "test_resnet",
        "data": "pets",
        "recipe": "distill",
        "baseline": ["train-bn"],
    }.items()
    found = recipe_of(text, "resnet18", "--epochs", "5", "--clip-grad", "1", "--aug", "--baseline", "frozen-bn")
    assert (found["model"], found["epochs"], found["batch-size"]) == ("resnet18", 5, 8)
    assert (found["clip-grad"], found["no-aug"], found["baseline"]) == (1.0, False, ["frozen-bn"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: {epoch: 3}", "finetune has no option 'epoch'; did you mean epochs?"),
        ("finetune: {batchsize: 3}", "finetune has no option 'batchsize'; did you mean batch-size?"),
        ("finetune: {weight_decy: 3}", "finetune has no option 'weight_decy'; did you mean weight-decay?"),
        ("finetune: {modle: resnet50}", "finetune has no option 'modle'; did you mean model?"),
        ("finetune: {epochs: 0}", "run.yaml: finetune: epochs has to be at least 1, not 0"),
        ("finetune: {epochs: many}", "run.yaml: finetune: epochs has to be a whole number, not 'many'"),
        ("finetune: {epochs: null}", "epochs has to be a whole number"),
        ("finetune: {no-aug: 3}", "no-aug takes true or false"),
        ("finetune: {scale: 3}", "scale takes a list"),
        ("finetune: {sched: [cosine]}", "sched takes one value"),
        ("finetune: {temperature: 2, kd-temperature: 3}", "twice"),
        ("finetune: {batch-size: 2, batch_size: 3}", "twice"),
        ("epochs: 3", "there is no command 'epochs'; write epochs below finetune:"),
        ("finetun: {epochs: 3}", "there is no command 'finetun'; did you mean finetune?"),
    ],
)
def test_a_wrong_file_of_a_run_is_one_line(text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    assert message in fails("finetune", "--config", "run.yaml")


def test_arguments_come_from_the_file_too() -> None:
    assert json.loads(configured("plan: {model: test_resnet, json: true}", "plan").stdout)["model"] == "test_resnet"


# --- exit codes ---


def test_help_names_every_exit_code() -> None:
    lines = run("--help").stdout.splitlines()
    for code, text in EXIT_CODES.items():
        assert any(line.split() == [str(code), *text.split()] for line in lines)


def test_a_closed_pipe_ends_in_silence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PROGRAM, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_PIPE, "")


def test_interrupting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilmconvert.checkpoint.save_load.read_header", interrupt)
    result = run("inspect", "x.safetensors")
    assert result.exit_code == EXIT_INTERRUPTED
    assert result.stderr.strip() == "Error: interrupted"


def test_control_c_leaves_no_file(folder: Path) -> None:
    words = [*PROGRAM, "torchvision/resnet152", "--weights", "none"]
    # What a shell starts in the background ignores the signal, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("never trained" in line for line in lines), "the model is built, and its conversion begins"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert errors.splitlines()[-1] == "Error: interrupted"
    assert list(folder.iterdir()) == []
