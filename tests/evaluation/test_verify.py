"""`ilmconvert verify`: sources that are found, checks that pass and fail, and what can't be shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import ilmconvert
from ilmconvert.calibration.collapse import collapse
from ilmconvert.cli import COMMANDS, main
from ilmconvert.errors import ModelError
from ilmconvert.evaluation.tolerances import EXACT_AGREEMENT, EXACT_RATIO, ROUNDING
from ilmconvert.evaluation.verify.inputs import Sample
from ilmconvert.evaluation.verify.opened_checkpoint import open_checkpoint
from ilmconvert.evaluation.verify.source_model import find_source_model
from ilmconvert.evaluation.verify.verification import verify
from ilmconvert.models.create import create_model
from ilmconvert.surgery.conversion_info import note
from tests.helpers import randomize_norms, save_trained

FAST = ["--batch-size", "2", "--random-batches", "1", "--input-size", "48"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, checkpoints of every kind, and images."""
    path = tmp_path_factory.mktemp("verify")
    model = create_model("test_resnet", weights=save_trained(path, scale=0.5))
    kinds: dict[str, dict[str, Any]] = {
        "exact": {},
        "moments": {"init": "moments"},
        "bounded": {"to": "ilm_ln", "restore_bound": 0.3},
        "part": {"exclude": "layer4*"},
    }
    for name, settings in kinds.items():
        ilmconvert.save(ilmconvert.convert(model, **settings), path / f"{name}.safetensors")
    half = ilmconvert.convert(model).to(torch.bfloat16)
    ilmconvert.save(half, path / "half.safetensors")
    tuned = ilmconvert.convert(model)
    with torch.no_grad():
        tuned.get_submodule("bn1").get_parameter("weight")[0] += 1e-3
    ilmconvert.save(tuned, path / "norm.safetensors")
    provenance = {
        "weights": "trained.safetensors",
        "sha256": ilmconvert.info(model).provenance["sha256"],
        "finetuned": {},
    }  # type: ignore[index]
    ilmconvert.save(tuned, path / "tuned.safetensors", provenance=provenance)
    head = ilmconvert.convert(model)
    with torch.no_grad():
        head.get_submodule("fc").get_parameter("weight")[0] += 1
    ilmconvert.save(head, path / "head.safetensors")
    torch.manual_seed(1)
    random = randomize_norms(create_model("test_resnet", weights="none"), scale=0.5)
    ilmconvert.save(ilmconvert.convert(random), path / "random.safetensors")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (path / "data" / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(path / "data" / label / f"{i}.png")
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "verify", ("ilmconvert.cli.verify:verify", "Compare."))


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["verify", *args, *FAST])


def read(*args: str, code: int = 0) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def broken(found: dict[str, Any]) -> list[str]:
    return [check["name"] for check in found["checks"] if not check["passed"]]


def test_an_exact_checkpoint_passes() -> None:
    found = read("exact.safetensors", "--data", "data")
    assert (found["verdict"], broken(found), found["caveats"][1:]) == ("passed", [], [])
    assert found["source"]["kind"] == "rebuilt"  # its weights lie beside it, with the SHA-256 that it names
    assert (found["count"], found["top1_agreement"], found["changed_tensors"]) == (6, 1.0, [])
    assert {image["name"] for image in found["images"]} == {f"{c}/{i}.png" for c in ("cat", "dog") for i in "012"}
    assert found["cost"]["time_ratio"] > 0
    result = run("exact.safetensors", "--data", "data")
    assert result.exit_code == 0
    assert "PASSED" in result.stdout
    assert "top-1 agreement" in result.stdout


def test_random_inputs_come_with_a_warning() -> None:
    result = run("exact.safetensors")
    assert result.exit_code == 0
    assert "Random numbers instead of images" in result.stderr
    found = read("exact.safetensors")
    assert found["sample"]["random"] is True
    # agreement on noise says little and isn't judged unless asked for
    assert "same first class as the source" not in [check["name"] for check in found["checks"]]
    asked = read("exact.safetensors", "--min-agreement", "0.5")
    assert "same first class as the source" in [check["name"] for check in asked["checks"]]


def test_a_changed_norm_breaks_it() -> None:
    found = read("norm.safetensors", code=1)
    assert found["verdict"] == "failed"
    # one channel of one layer, which the outputs hardly show
    assert broken(found) == ["signal over error of every layer by itself"]
    worst = min((layer for layer in found["layers"] if layer["own_snr"] is not None), key=lambda e: e["own_snr"])
    assert worst["name"] == "bn1"
    assert "FAILED" in run("norm.safetensors").stdout


def test_changed_weights_elsewhere_break_it() -> None:
    found = read("head.safetensors", "--weights", "trained.safetensors", code=1)
    assert found["source"]["kind"] == "given"
    assert "weights outside the norms are the source's" in broken(found)
    assert found["changed_tensors"] == ["fc.weight"]


def test_thresholds_are_options() -> None:
    assert read("exact.safetensors", "--max-error", "1e-12", code=1)["verdict"] == "failed"
    assert read("norm.safetensors", "--min-ratio", "0")["verdict"] == "passed"
    assert broken(read("moments.safetensors", "--max-kl", "1e-9", code=1)) == ["mean KL divergence"]


def test_help_names_the_tolerances() -> None:
    text = " ".join(CliRunner().invoke(main, ["verify", "--help"]).output.split())
    for limit in (f"{ROUNDING[torch.float32]:g}".replace("-0", "-"), f"{EXACT_AGREEMENT:g}", f"{EXACT_RATIO:g}"):
        assert f"[default: {limit} if exact" in text


def test_verify_and_the_sweep_have_one_tolerance() -> None:
    """What the sweep refuses in single precision verify refuses, too: the least change of the head that it sees."""
    model = ilmconvert.convert(create_model("test_resnet", weights="trained.safetensors"))
    limit, x = ROUNDING[torch.float32], torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_parameter("fc.bias").add_(2 * limit * model(x).abs().max())
    ilmconvert.save(model, "shifted.safetensors")
    found = read("shifted.safetensors", "--weights", "trained.safetensors", code=1)
    assert limit < found["relative_error"] < 10 * limit
    assert "largest error over the largest output" in broken(found)


def test_moments_have_no_limit() -> None:
    found = read("moments.safetensors")
    assert found["verdict"] == "not judged"
    assert found["relative_error"] > 1e-3
    assert "add --min-agreement" in run("moments.safetensors").stdout
    assert read("moments.safetensors", "--max-error", "1e-6", code=1)["verdict"] == "failed"


def test_a_bound_is_judged_by_classes_of_images_only() -> None:
    assert read("bounded.safetensors")["verdict"] == "not judged"
    with_images = run("bounded.safetensors", "--data", "data", "--json")
    found = json.loads(with_images.stdout)
    assert found["criteria"]["min_agreement"] == 0.99
    assert found["criteria"]["max_error"] is None
    assert with_images.exit_code == (0 if found["top1_agreement"] >= 0.99 else 1)


def test_a_fine_tuned_checkpoint_is_measured_not_judged() -> None:
    found = read("tuned.safetensors")
    assert found["verdict"] == "not judged"
    assert "fine-tuned" in found["criteria"]["text"]


def test_half_precision_has_its_own_limit() -> None:
    found = read("half.safetensors")
    assert found["criteria"]["max_error"] == ROUNDING[torch.bfloat16]
    assert found["verdict"] == "passed"
    assert 1e-4 < found["relative_error"] < 0.1
    # the source in single precision, rounded to the checkpoint's type, is what the checkpoint holds
    assert found["changed_tensors"] == []


def test_without_its_source_the_checkpoint_is_held_to_its_own_word() -> None:
    found = read("random.safetensors", code=3)
    assert (found["source"]["kind"], found["verdict"], found["changed_tensors"]) == (
        "reconstructed",
        "not compared",
        None,
    )
    assert "can't show that the file holds the weights that you think" in found["caveats"][0]
    result = run("random.safetensors")
    assert "--source MODEL" in result.stderr
    assert "Verified against a source rebuilt from the checkpoint" in result.stdout
    assert "rebuilt from" not in run("exact.safetensors").stdout


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str, **args: Any) -> nn.Module:
        raise ModelError("no network to get the default weights with")

    model = create_model("test_resnet", weights="trained.safetensors")
    note(model, provenance={"weights": "default"})
    ilmconvert.save(ilmconvert.convert(model), "default.safetensors")
    monkeypatch.setattr("ilmconvert.evaluation.verify.source_model.create_model", no_network)
    found = read("default.safetensors", code=3)
    assert found["source"]["kind"] == "reconstructed"
    assert "no network" in found["caveats"][0]


def test_a_file_with_the_name_but_other_weights_is_not_the_source(tmp_path: Path) -> None:
    Path("trained.safetensors").unlink()
    save_file(timm.create_model("test_resnet").state_dict(), "trained.safetensors")
    (tmp_path / "sub").mkdir()
    Path("sub/exact.safetensors").write_bytes(Path("exact.safetensors").read_bytes())
    assert read("sub/exact.safetensors", code=3)["source"]["kind"] == "reconstructed"


def test_no_source_at_all_is_an_error(tmp_path: Path) -> None:
    Path("trained.safetensors").unlink()
    for name, why in (
        ("moments", "initialised from moments"),
        ("norm", "bn1 was trained"),
        ("tuned", "was fine-tuned"),
    ):
        (tmp_path / name).mkdir()
        Path(name, "c.safetensors").write_bytes(Path(f"{name}.safetensors").read_bytes())
        result = run(f"{name}/c.safetensors")
        assert result.exit_code == 2
        assert why in result.stderr
        assert "--source MODEL and --weights FILE" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_source_that_is_given(folder: Path) -> None:
    named = read("exact.safetensors", "--source", "test_resnet", "--weights", "trained.safetensors")
    assert (named["source"]["kind"], named["verdict"]) == ("given", "passed")
    other = read("tuned.safetensors", "--source", "exact.safetensors")
    assert other["source"]["description"] == "the checkpoint exact.safetensors"
    assert 1e-6 < other["relative_error"] < 1e-5
    # 1 is for checks that failed
    save_file(timm.create_model("test_efficientnet").state_dict(), "other.safetensors")
    for name in ("exact.safetensors", plain_checkpoint("gn")):
        wrong = run(name, "--source", "test_efficientnet", "--weights", "other.safetensors")
        assert wrong.exit_code == 2
        assert wrong.stderr.splitlines()[-1].endswith("give the model that was converted")


def test_what_was_left_is_listed() -> None:
    found = read("part.safetensors")
    assert found["skipped"]
    assert all(entry["name"].startswith("layer4") for entry in found["skipped"])
    assert {entry["reason"] for entry in found["skipped"]} == {
        "left out when the model was converted (include, exclude)"
    }
    assert len(found["converted"]) + len(found["skipped"]) == len(read("exact.safetensors")["converted"])


def test_labels_count_only_where_they_fit() -> None:
    unfit = read("exact.safetensors", "--data", "data")
    assert unfit["labelled"] == 0
    assert "2 classes and the model 1000 logits" in unfit["caveats"][0]
    torch.manual_seed(0)
    model = randomize_norms(create_model("test_resnet", weights="none", num_classes=2), scale=0.5)
    ilmconvert.save(ilmconvert.convert(model), "two.safetensors")
    found = read("two.safetensors", "--data", "data", "--max-images", "4", code=3)
    assert (found["count"], found["labelled"]) == (4, 4)
    assert found["source_top1"] == found["converted_top1"]
    assert {image["label_name"] for image in found["images"]} == {"cat", "dog"}
    assert found["top5_agreement"] is None


def test_layers_and_images_can_be_chosen() -> None:
    assert read("exact.safetensors", "--layers", "none")["layers"] == []
    chosen = read("exact.safetensors", "--layers", "bn1", "--layers", "fc", "--worst", "1")
    assert [layer["name"] for layer in chosen["layers"]] == ["bn1", "fc"]
    assert len(chosen["images"]) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.safetensors"], "doesn't exist"),
        (["trained.safetensors"], "wasn't written by ilmconvert"),
        (["exact.safetensors", "--html", "no/report.html"], "there is no folder no"),
        (["exact.safetensors", "--data", "nowhere"], "nowhere isn't a folder"),
        (["exact.safetensors", "--layers", "nowhere"], "no layer of both models matches"),
        (["exact.safetensors", "--source", "tets_resnet"], "test_resnet"),
        (["exact.safetensors", "--min-agreement", "2"], "min-agreement"),
    ],
)
def test_errors_are_one_line(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1
    assert message in lines[0]


STARTS = "norms hold what the source's statistics give"


def plain_checkpoint(to: str, change: Callable[[nn.Module], object] = lambda model: None) -> str:
    model = ilmconvert.convert(create_model("test_resnet", weights="trained.safetensors"), to)
    with torch.no_grad():
        change(model)
    return str(ilmconvert.save(model, f"{to}.safetensors"))


@pytest.mark.parametrize("to", ["gn", "ln", "in"])
def test_plain_layers_are_compared_too(to: str) -> None:
    found = read(plain_checkpoint(to))
    assert (found["verdict"], broken(found)) == ("not judged", [])
    assert {layer["name"] for layer in found["layers"]} == set(found["converted"])
    assert all(abs(layer["own_snr"]) < 60 for layer in found["layers"])
    assert {layer["converted"] for layer in found["layers"]} == {"GroupNorm"}
    assert (found["changed_tensors"], found["skipped"]) == ([], [])
    assert STARTS in [check["name"] for check in found["checks"]]
    assert "Plain GroupNorm, initialised from running statistics" in found["criteria"]["text"]
    assert "ILM" not in found["criteria"]["text"]


def test_a_plain_start_is_held_to_its_values_and_the_rest() -> None:
    path = plain_checkpoint("gn", lambda model: model.get_parameter("layer2.0.bn1.weight").mul_(1.01))
    found = read(path, code=1)
    assert broken(found) == [STARTS]
    assert "layer2.0.bn1" in next(check for check in found["checks"] if check["name"] == STARTS)["measured"]
    other = plain_checkpoint("ln", lambda model: model.get_parameter("fc.weight")[0].add_(1))
    found = read(other, "--weights", "trained.safetensors", code=1)
    assert broken(found) == ["weights outside the norms are the source's"]


def test_a_calibrated_plain_network_may_have_other_values_in_its_norms() -> None:
    path = plain_checkpoint("ln")
    args = ["calibrate", path, "--data", "data", "--batch-size", "2", "--input-size", "48", "--json"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.stderr
    kept = json.loads(done.stdout)["kept"]
    assert kept != "start"
    found = read("ln-calibrated.safetensors", "--data", "data")
    assert (found["verdict"], found["settings"]["calibrated"]) == ("not judged", kept)
    assert "calibrated" in found["criteria"]["text"]
    assert STARTS not in [check["name"] for check in found["checks"]]
    assert found["kl"] < read(path, "--data", "data")["kl"]
    # what the user wants of it is judged
    asked = read("ln-calibrated.safetensors", "--data", "data", "--max-kl", "100")
    assert (asked["verdict"], "asked for" in asked["criteria"]["text"]) == ("passed", True)
    read("ln-calibrated.safetensors", "--data", "data", "--max-error", "1e-3", code=1)


def test_a_collapsed_network_is_judged_as_exact_only_if_it_is() -> None:
    source = randomize_norms(create_model("test_resnet", weights="none", norm_layer="groupnorm1"), scale=0.5)
    converted = ilmconvert.convert(source)
    ilmconvert.save(converted, "gn-source.safetensors")
    ilmconvert.save(collapse(converted).model, "collapsed.safetensors")
    found = read("collapsed.safetensors", "--source", "gn-source.safetensors")
    assert (found["verdict"], found["criteria"]["max_error"]) == ("passed", ROUNDING[torch.float32])
    with torch.no_grad():
        layer = next(m for m in converted.modules() if isinstance(m, ilmconvert.ILMNorm))
        layer.weight_decoder.fill_(1e-4)
    nearly = collapse(converted, [torch.randn(4, 3, 48, 48)])
    assert 0 < nearly.deviation < 1e-3
    ilmconvert.save(nearly.model, "nearly.safetensors")
    found = read("nearly.safetensors", "--source", "gn-source.safetensors")
    assert (found["verdict"], found["criteria"]["max_error"]) == ("not judged", None)
    # with nothing to compare with it isn't compared with itself
    refused = run("collapsed.safetensors")
    assert refused.exit_code == 2
    assert "holds plain layers, which don't tell their source" in refused.stderr


def test_a_source_that_does_not_tell_the_start() -> None:
    # the converted network's own exact twin: an ILM Norm says nothing of running statistics
    found = read(plain_checkpoint("gn"), "--source", "exact.safetensors")
    assert found["verdict"] == "not judged"
    assert STARTS not in [check["name"] for check in found["checks"]]


def test_a_network_without_classes_is_not_judged_by_them() -> None:
    model = create_model("test_resnet", weights="trained.safetensors", num_classes=1000)
    features = create_model("test_resnet", weights="none", num_classes=0)
    features.load_state_dict({k: t for k, t in model.state_dict().items() if not k.startswith("fc.")})
    ilmconvert.save(ilmconvert.convert(nn.Sequential(features, nn.Unflatten(1, (-1, 1)))), "map.safetensors")
    opened = open_checkpoint("map.safetensors", into=nn.Sequential(features, nn.Unflatten(1, (-1, 1))))
    source = find_source_model(opened, source=nn.Sequential(features, nn.Unflatten(1, (-1, 1))))
    found = verify(opened, source, Sample([torch.randn(2, 3, 48, 48)], "two images"))
    assert found.fidelity.classes is None
    assert found.verdict == "passed"
    assert "same first class as the source" not in [check.name for check in found.checks]
