"""The command line, end to end on small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import ilmconvert
from ilmconvert.checkpoint.save_load import load, read_header
from ilmconvert.cli import COMMANDS
from tests.cli.commands import fails, run


def test_convert_and_load(trained: Path) -> None:
    result = run("test_resnet", "--weights", str(trained))
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "layers converted" in result.stdout
    assert result.stdout.splitlines()[-1] == "Wrote test_resnet-ilm_gn.safetensors"
    source = timm.create_model("test_resnet", checkpoint_path=str(trained)).eval()
    x = torch.randn(2, 3, 96, 96)
    expected, found = source(x), load("test_resnet-ilm_gn.safetensors")(x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_json(trained: Path) -> None:
    options = ["--to", "ilm_ln", "--exclude", "layer1*", "-o", "x.safetensors", "--json"]
    result = run("convert", "test_resnet", "--weights", str(trained), *options)
    summary = json.loads(result.stdout)
    assert summary["spec"]["architecture"] == "test_resnet.r160_in1k"
    assert summary["provenance"]["weights"] == "trained.safetensors"
    skipped = summary["layers"]["skipped"]
    assert skipped == {"excluded by 'layer1*'": 2}
    assert summary["layers"]["converted"] == 13
    assert summary["parameters"]["after"] > summary["parameters"]["before"] == 469_688
    assert 0 < summary["error"]["relative_error"] < 1e-5
    assert summary["error"]["top1_agreement"] == 1
    assert summary["output"] == "x.safetensors"
    assert {layer["config"]["num_groups"] for layer in read_header("x.safetensors")["layers"]} == {1}


def test_options_reach_the_conversion(trained: Path) -> None:
    options = ["--include", "layer1*", "--include", "layer2*", "--num-groups", "4", "--key-group-size", "8"]
    options += ["--reduction", "2", "--restore-bound", "2.5", "-o", "x.safetensors"]
    assert run("test_resnet", "--weights", str(trained), *options).exit_code == 0
    layers = read_header("x.safetensors")["layers"]
    assert {layer["name"].split(".")[0] for layer in layers} == {"layer1", "layer2"}
    for layer in layers:
        config = layer["config"]
        assert (config["num_groups"], config["key_group_size"]) == (4, 8)
        assert (config["reduction"], config["restore_bound"]) == (2, 2.5)


def test_moments_says_how_far_it_is_and_does_not_warn(trained: Path) -> None:
    result = run("test_resnet", "--weights", str(trained), "--init", "moments", "--json")
    assert json.loads(result.stdout)["error"]["relative_error"] > 1e-2
    assert result.stderr == ""


def test_a_conversion_that_is_not_exact_warns_loudly(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module, *plan: Any) -> torch.nn.Module:
        result = original(model, *plan)
        with torch.no_grad():
            result.fc.weight.mul_(1.01)
        return result

    original = ilmconvert.convert
    monkeypatch.setattr(ilmconvert.surgery, "convert", wrong)
    result = run("test_resnet", "--weights", str(trained))
    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: THE CONVERTED MODEL DIFFERS")
    assert "in double precision both compute the same" in result.stderr  # the plan is right, and what was made isn't


def test_what_differs_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that reads the gamma of a norm through a function, where no search of the source text finds it."""

    def scaled(self: Any, x: torch.Tensor) -> torch.Tensor:
        return original(self, x) * sum(dict(self.bn1.named_parameters())["weight"])

    stem = timm.models.ResNet
    original = stem.forward_features
    monkeypatch.setattr(stem, "forward_features", scaled)
    error = json.loads(run("test_resnet", "--weights", str(trained), "--json").stdout)["error"]
    assert error["reason"].startswith("it computes something else on the example (relative error ")
    assert "is the first module to differ" in error["reason"]


def test_model_arguments_and_random_weights() -> None:
    result = run("test_resnet", "--weights", "none", "--model-arg", "num_classes=10", "--model-arg", "global_pool=max")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("Warning: 15 BatchNorm layers were never trained")
    args = read_header("test_resnet-ilm_gn.safetensors")["spec"]["model_args"]
    assert args == {"num_classes": 10, "global_pool": "max"}


def test_torchvision_model() -> None:
    summary = json.loads(run("torchvision/shufflenet_v2_x0_5", "--weights", "none", "--json").stdout)
    assert summary["spec"] == {"library": "torchvision", "architecture": "shufflenet_v2_x0_5", "model_args": {}}
    assert summary["output"] == "shufflenet_v2_x0_5-ilm_gn.safetensors"
    assert load(summary["output"])(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_existing_output_is_kept_unless_forced(trained: Path) -> None:
    output = Path("test_resnet-ilm_gn.safetensors")
    output.write_text("precious")
    assert "--force" in fails("test_resnet", "--weights", str(trained))
    assert output.read_text() == "precious"
    assert run("test_resnet", "--weights", str(trained), "--force").exit_code == 0
    assert len(read_header(output)["layers"]) == 15


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet5o"], "did you mean resnet50"),
        (["test_vit"], "nothing to convert"),
        (["test_vit", "--weights", "none"], "nothing to convert"),
        (["test_nfnet", "--weights", "none"], "no norm layer"),
        (["test_resnet", "--weights", "missing.pth"], "there is no file missing.pth"),
        (["test_resnet", "--weights", "none", "--include", "nothing*"], "nothing to convert"),
        (["test_resnet", "--weights", "none", "--to", "ilm_ln", "--num-groups", "8"], "--num-groups 8 only applies"),
        (["plan", "test_resnet", "--to", "gn", "--init", "identity"], "--init identity is for ilm_gn"),
        (["test_resnet", "--init", "moments", "--restore-bound", "1"], "--restore-bound needs --init identity"),
        (["test_efficientnet_gn", "--weights", "none", "--to", "ilm_in"], "groups can't become"),
        (["test_resnet", "--weights", "none", "--model-arg", "nonsense=1"], "nonsense"),
        (["test_resnet", "--model-arg", "nonsense"], "KEY=VALUE"),
        (["test_resnet", "--to", "batch_norm"], "'batch_norm' is not one of"),
        (["test_resnet", "--num-groups", "0"], "0 is not in the range"),
        (["test_resnet", "--restore-bound", "-1"], "is not in the range"),
        (["test_resnet", "-o", "out.pth"], "has to end in .safetensors"),
        (["test_resnet", "-o", "no/such/out.safetensors"], "there is no folder"),
        (["test_resnet", "-o", "folder.safetensors"], "is a folder"),
        (["test_resnet", "test_resnet"], "unexpected extra argument"),
        (["plam", "test_resnet"], "did you mean plan?"),
        (["--nonsense"], "--nonsense"),
        (["convert"], "Missing argument 'MODEL'"),
        (["plan", "resnet5o"], "did you mean resnet50"),
        (["plan", "test_vit"], "nothing to convert in test_vit"),
        (["plan", "test_efficientnet_gn", "--to", "ilm_in"], "can't be converted as asked"),
        (["plan", "test_resnet", "--to", "ilm_in", "--num-groups", "2"], "only applies to 'ilm_gn'"),
        (["inspect", "missing.safetensors"], "missing.safetensors"),
        (["inspect", "folder.safetensors"], "folder"),
        (["inspect", "text.safetensors"], "text.safetensors"),
        (["list", "zzqqxx"], "no model of timm or torchvision matches"),
    ],
)
def test_errors_are_one_line_and_write_nothing(args: list[str], message: str, folder: Path) -> None:
    (folder / "folder.safetensors").mkdir()
    (folder / "text.safetensors").write_text("hello, hello, hello")
    before = sorted(folder.rglob("*"))
    assert message in fails(*args)
    assert sorted(folder.rglob("*")) == before


def test_a_failing_write_leaves_nothing(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left on device" in fails("test_resnet", "--weights", str(trained))
    assert [path.name for path in folder.iterdir()] == [trained.name]


def test_models_that_do_not_run_are_converted_with_a_warning(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("ilmconvert.evaluation.outputs.output_error", fail)
    result = run("test_resnet", "--weights", str(trained), "--json")
    assert json.loads(result.stdout)["error"] is None
    message = "the model wasn't compared with its source, since running them failed: out of memory"
    assert result.stderr == f"Warning: {message}\n"


@pytest.mark.parametrize("command", ["apply .", "calibrate . --data .", "collapse .", "export .", "undo ."])
def test_the_current_folder_is_no_checkpoint(folder: Path, command: str) -> None:
    assert "a folder without model.safetensors" in fails(*command.split())
    assert list(folder.iterdir()) == []


def test_plan_shows_and_writes_nothing(folder: Path) -> None:
    result = run("plan", "test_resnet", "--exclude", "conv1*", "--exclude", "none*")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "13 to convert, 2 skipped, 0 refused"
    assert result.stderr == "Warning: pattern 'none*' matches no norm layer\n"
    assert list(folder.iterdir()) == []


def test_plan_as_json() -> None:
    data = json.loads(run("plan", "test_efficientnet_gn", "--json").stdout)
    assert data["layers"]["converted"] == len(data["entries"]) == 13
    assert data["settings"]["to"] == "ilm_gn"


def test_plan_with_weights_checks_statistics(trained: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(trained)
    state["layer1.0.bn1.running_var"][0] = -1
    save_file(state, "bad.safetensors")
    result = run("plan", "test_resnet", "--weights", "bad.safetensors")
    assert result.exit_code == 2
    assert "running variance is negative" in result.stdout
    assert "running variance is negative" in fails("test_resnet", "--weights", "bad.safetensors")


def test_inspect(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run("test_resnet", "--weights", str(trained), "--model-arg", "in_chans=3", "-o", "x.safetensors")
    text = run("inspect", "x.safetensors", "--layers").stdout
    for part in ("timm test_resnet.r160_in1k", "in_chans=3", "identity", "trained.safetensors", "15, 15 of them"):
        assert part in text
    assert "layer1.0.bn1: " in text
    assert json.loads(run("inspect", "x.safetensors", "--json").stdout) == read_header("x.safetensors")


def test_list() -> None:
    result = run("list", "test_*")
    names = [line.split()[1] for line in result.stdout.splitlines()]
    assert "test_resnet" in names
    assert "test_vit" not in names
    assert result.stderr == f"{len(names)} of {len(timm.list_models('test_*'))} models can be converted\n"
    everything = json.loads(run("list", "test_res*", "--all", "--check", "--json").stdout)
    assert {"name": "test_resnet", "norm_layers": 15} in everything["models"]


def test_list_counts_models_that_the_file_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilmconvert.models.norm_counts.stored_counts", lambda: {"test_vit": 0})
    assert run("list", "test_resnet").stdout == "   15  test_resnet\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert name in result.stdout
        assert text in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["plan", "-h"], ["-h"]])
def test_help_has_its_names_whatever_context_asks_first(args: list[str]) -> None:
    code = (
        "import click; from ilmconvert.cli import main\n"
        "context = click.Context(main)\n"
        "[command.get_help(context) for command in (main, main.get_command(context, 'plan'))]\n"
        f"main({args})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-h, --help" in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"main {ilmconvert.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {name}")


def test_help_loads_no_library() -> None:
    code = (
        "import sys; from ilmconvert.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "ilmconvert", "test_vit", "--weights", "none", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: nothing to convert")
    assert done.stderr.count("\n") == 1


# --- folders for the hub, deltas ---


def test_convert_for_the_hub(trained: Path) -> None:
    result = run("test_resnet", "--weights", str(trained), "--format", "hub")
    assert result.exit_code == 0, result.stderr
    assert "Wrote test_resnet-ilm_gn\n" in result.stdout
    card = Path("test_resnet-ilm_gn/README.md").read_text()
    assert "| same class | 100 % |" in card
    assert "| weights | trained.safetensors |" in card
    model = timm.create_model("local-dir:test_resnet-ilm_gn", pretrained=True, num_classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert "test_resnet.r160_in1k" in run("inspect", "test_resnet-ilm_gn").stdout
    assert "exists already" in fails("test_resnet", "--weights", str(trained), "--format", "hub")
    assert run("local-dir:test_resnet-ilm_gn", "--weights", "none", "-o", "x.safetensors").exit_code == 0


def test_export_for_the_hub_compares_with_the_source_at_hand(trained: Path) -> None:
    assert run("test_resnet", "--weights", str(trained), "-o", "m.safetensors").exit_code == 0
    result = run("export", "m.safetensors", "--format", "hub", "--json")
    assert json.loads(result.stdout) == {
        "format": "hub",
        "output": "m",
        "share": None,
        "published": None,
        "measured": True,
    }
    assert "| same class | 100 % |" in Path("m/README.md").read_text()
    trained.unlink()
    assert (
        json.loads(run("export", "m.safetensors", "--format", "hub", "--force", "--json").stdout)["measured"] is False
    )
    assert "Not measured when this was written" in Path("m/README.md").read_text()


def test_push(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def upload(folder: Path, repo_id: str, **options: Any) -> str:
        seen.update(options, folder=folder, repo_id=repo_id)
        return "https://huggingface.co/me/mine/commit/abc"

    monkeypatch.setattr("ilmconvert.export.hub.push.upload", upload)
    options = ["--weights", str(trained), "--format", "hub", "--push", "me/mine", "--private"]
    result = run("test_resnet", *options)
    assert result.stdout.splitlines()[-1] == "Published: https://huggingface.co/me/mine/commit/abc"
    assert seen == {"folder": Path("test_resnet-ilm_gn"), "repo_id": "me/mine", "private": True}
    assert "hf-hub:me/mine" in Path("test_resnet-ilm_gn/README.md").read_text()


def test_delta_and_back(trained: Path) -> None:
    assert run("test_resnet", "--weights", str(trained)).exit_code == 0
    result = run("test_resnet", "--weights", str(trained), "--format", "delta", "--json")
    summary = json.loads(result.stdout)
    assert summary["output"] == "test_resnet-ilm_gn.delta.safetensors"
    assert 0.01 < summary["share"] < 0.2
    whole = Path("test_resnet-ilm_gn.safetensors").read_bytes()
    assert "exists already" in fails("apply", summary["output"])
    assert run("apply", summary["output"], "--force").exit_code == 0
    assert Path("test_resnet-ilm_gn.safetensors").read_bytes() == whole
    result = run("export", "test_resnet-ilm_gn.safetensors", "--format", "delta", "-o", "b.safetensors")
    assert "of the whole checkpoint)" in result.stdout
    assert Path("b.safetensors").read_bytes() == Path(summary["output"]).read_bytes()
    save_file(timm.create_model("test_resnet").state_dict(), "other.safetensors")
    given = ["--weights", "other.safetensors"]
    assert "is for another base" in fails("apply", "b.safetensors", "-o", "c.safetensors", *given)
    trained.unlink()
    assert "give the source with --source" in fails("apply", "b.safetensors", "-o", "c.safetensors")
    assert not Path("c.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["test_resnet", "--push", "me/mine"], "add --format hub"),
        (["test_resnet", "--format", "hub", "--private"], "--private is for the repository"),
        (["export", "m.safetensors", "--push", "me/mine"], "add --format hub"),
        (["export", "m.safetensors", "--format", "hub", "--static"], "are for onnx, pt2 and aoti"),
        (["export", "m.safetensors", "--source", "resnet18"], "are for hub and delta"),
        (["test_resnet", "--format", "hub", "-o", "no/such/place"], "there is no folder"),
        (["apply", "m.safetensors", "-o", "m.safetensors"], "its own output"),
        (["apply", "m.safetensors", "-o", "n.safetensors"], "doesn't exist"),
    ],
)
def test_formats_that_do_not_go_together(args: list[str], message: str) -> None:
    assert message in fails(*args)
