"""The sweep itself: it passes what is right, and every kind of fault that it is there to find makes it fail."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import ilmconvert
from benchmarks.sweep_table import document
from ilmconvert.cli import sweep as command
from ilmconvert.models.create import list_models
from ilmconvert.testing import (
    OUTCOMES,
    choose,
    outcome,
    randomize_norms,
    read_lines,
    run_model,
    run_sweep,
    survey,
    wake_parameters,
)
from ilmconvert.testing import check_conversion as checks
from ilmconvert.testing.process_pool import Task, run_tasks
from tests.surgery.foreign_norms import DetrFrozenBatchNorm

TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")


@pytest.mark.parametrize("to", TARGETS)
def test_a_model_passes_all_checks(to: str) -> None:
    line = run_model("test_resnet", to)
    assert line["error"] is None
    assert outcome(line) == "exact"
    assert all(line[key] for key in ("executed", "exact", "roundtrip", "backward"))
    assert (line["family"], line["converted"], line["refused"], line["skipped"]) == ("resnet", 15, 0, {})
    assert 0 < line["relative_error"] <= 1e-5
    assert line["dtype"] == "float32"
    assert line["input"] == [2, 3, 32, 32]
    assert line["parameters_added"] > 0
    json.dumps(line, allow_nan=False)


def test_layers_that_stay_are_counted_by_reason() -> None:
    line = run_model("test_coatnet", "ilm_gn")
    assert outcome(line) == "exact"
    assert sum(line["skipped"].values()) == sum(
        isinstance(m, nn.LayerNorm)
        for m in ilmconvert.models.create.create_model("test_coatnet", weights="none").modules()
    )


def test_groups_that_a_target_cannot_keep_are_refused_not_failed() -> None:
    line = run_model("test_efficientnet_gn", "ilm_ln")
    assert (outcome(line), line["refused"], line["converted"]) == ("refused", 13, 0)
    assert outcome(run_model("test_efficientnet_gn", "ilm_gn")) == "exact"


def test_what_can_be_converted_is_although_other_layers_are_refused() -> None:
    model = randomize_norms(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(4, 8))).eval()
    line: dict[str, Any] = {"to": "ilm_ln"}
    converted = checks.convert(model, line)
    assert converted is not None
    assert [type(m) for m in converted] == [nn.Conv2d, ilmconvert.ILMNorm, nn.GroupNorm]
    assert (line["refused"], line["converted"]) == (1, 1)


def test_a_model_above_the_limit_is_converted_without_being_run() -> None:
    line = run_model("test_resnet", "ilm_in", max_parameters=1000)
    assert (outcome(line), line["converted"], line["executed"]) == ("planned", 15, False)
    assert line["parameters"] == run_model("test_resnet", "ilm_in")["parameters"]


def test_a_model_without_norms_is_not_counted() -> None:
    assert outcome(run_model("test_vit", "ilm_gn")) == "nothing to convert"


def test_an_unknown_model_is_an_error_in_its_line() -> None:
    line = run_model("resnet5000", "ilm_gn")
    assert outcome(line) == "failed"
    assert line["error"].startswith("ModelError: unknown model")


def test_auxiliary_heads_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: nn.Module) -> None:
        model.get_submodule("aux2.conv.bn").bias.add_(1)

    _spoil_conversion(monkeypatch, spoil)
    assert "relative error" in run_model("torchvision/googlenet", "ilm_gn")["error"]


def _spoil_conversion(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    convert = ilmconvert.convert

    def spoiled(*args: Any, **settings: Any) -> nn.Module:
        model = convert(*args, **settings)
        with torch.no_grad():
            spoil(model)
        return model

    monkeypatch.setattr(ilmconvert.surgery, "convert", spoiled)


def _first(model: nn.Module) -> ilmconvert.ILMNorm:
    return next(m for m in model.modules() if isinstance(m, ilmconvert.ILMNorm))


def _scale(model: nn.Module) -> None:
    _first(model).restore_weight.mul_(1.001)  # type: ignore[union-attr]


def _lose_activation(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, ilmconvert.nn.ILMNormAct)).act = nn.Identity()


def _put_back(model: nn.Module) -> None:
    model.bn1 = nn.BatchNorm2d(model.bn1.num_channels)  # type: ignore[union-attr, arg-type]


def _other_settings(model: nn.Module) -> None:
    _first(model).eps = 1e-3


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("test_resnet", _scale, "relative error"),
        ("test_resnet", _put_back, "bn1 was planned as"),
        ("test_resnet", _other_settings, "was planned as"),
        ("test_efficientnet", _lose_activation, "bn1.act was not planned but became a Identity"),
    ],
)
def test_a_wrong_conversion_is_found(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Any, message: str) -> None:
    _spoil_conversion(monkeypatch, spoil)
    line = run_model(name, "ilm_gn")
    assert outcome(line) == "failed"
    assert message in line["error"]


def test_a_checkpoint_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ilmconvert.load

    def lossy(path: Path) -> nn.Module:
        model = load(path)
        _first(model).weight.data.mul_(1 + 2**-22)  # type: ignore[union-attr]
        return model

    monkeypatch.setattr(ilmconvert.checkpoint, "load", lossy)
    line = run_model("test_resnet", "ilm_gn")
    assert (line["exact"], line["roundtrip"]) == (True, False)
    assert line["error"] == "the loaded model has other tensors"


def test_a_gradient_that_is_not_finite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil_conversion(monkeypatch, lambda model: _first(model).weight.register_hook(lambda grad: grad / 0))
    line = run_model("test_resnet", "ilm_gn")
    assert (line["roundtrip"], line["backward"]) == (True, False)
    assert "gradients aren't finite" in line["error"]


def test_a_layer_that_never_runs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil_conversion(
        monkeypatch, lambda model: setattr(model.bn1, "spare", ilmconvert.ILMNorm(8, 1, key_group_size=8))
    )
    monkeypatch.setattr(checks, "_check_replaced", lambda *args: None)
    assert "never ran, first bn1.spare" in run_model("test_resnet", "ilm_gn")["error"]


def test_float64_decides_where_float32_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ROUNDING", {torch.float32: 1e-12, torch.float64: 1e-10})
    line = run_model("test_resnet", "ilm_gn")
    assert (outcome(line), line["dtype"], line["norm_scale"]) == ("exact", "float64", 1.0)
    assert line["relative_error"] < 1e-12 < line["float32_error"]
    assert 1e-9 < line["source_rounding"] < 1e-5


def test_smaller_gammas_are_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([1.0, float("nan"), 1e-16])
    monkeypatch.setattr(checks, "_largest_error", lambda *args: next(errors))
    line = run_model("test_resnet", "ilm_gn")
    assert (outcome(line), line["dtype"], line["norm_scale"]) == ("exact", "float64", 0.5)
    monkeypatch.setattr(checks, "_largest_error", lambda *args: 1.0)
    expected = "relative error 1.0e+00 in float32, 1.0e+00 in float64, 1.0e+00 in float64"
    assert run_model("test_resnet", "ilm_gn")["error"] == expected


def test_frozen_norms_of_other_libraries_get_telling_values() -> None:
    frozen, plain = DetrFrozenBatchNorm(8), nn.BatchNorm2d(8)
    randomize_norms(frozen)
    randomize_norms(plain)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    statistics = nn.Module()
    statistics.running_mean = torch.zeros(8)  # alone they make no norm of it: a scaler of inputs, say
    assert not randomize_norms(statistics).running_mean.any()


def test_parameters_near_zero_wake_and_others_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[2].weight)
    kept = {key: value.clone() for key, value in model.state_dict().items() if key != "1.weight"}
    wake_parameters(model)
    assert model[1].weight.abs().max() > 0.1
    assert all(torch.equal(model.state_dict()[key], value) for key, value in kept.items())


def test_a_sweep_writes_a_line_a_model_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    names, seen = ["test_vit", "test_resnet", "test_byobnet"], list[str]()
    lines = run_sweep(names, ["ilm_gn"], out, on_line=lambda line, done, total: seen.append(line["model"]))
    assert {line["model"]: outcome(line) for line in lines} == {
        "test_vit": "nothing to convert",
        "test_resnet": "exact",
        "test_byobnet": "exact",
    }
    assert sorted(seen) == sorted(names)

    # As a crash leaves it: the last line is cut off.
    text = out.read_text()
    out.write_text(text[: text.rindex('"seconds"')])
    lost = json.loads(text.splitlines()[-1])["model"]
    seen.clear()
    again = run_sweep(names, ["ilm_gn"], out, on_line=lambda line, done, total: seen.append(line["model"]))
    assert seen == [lost]
    assert {line["model"] for line in again} == set(names) == {line["model"] for line in read_lines(out)}


def test_a_sweep_runs_failures_again_only_when_told(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    failed = {**run_model("test_resnet", "ilm_gn"), "error": "something"}
    out.write_text(json.dumps(failed) + "\n")
    assert run_sweep(["test_resnet"], ["ilm_gn"], out)[0]["error"] == "something"
    assert run_sweep(["test_resnet"], ["ilm_gn"], out, retry=True)[0]["error"] is None
    assert [line["error"] for line in read_lines(out)] == [None]


def test_a_sweep_runs_larger_models_once_it_may(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    assert outcome(run_sweep(["test_resnet"], ["ilm_gn"], out, max_parameters=1)[0]) == "planned"
    assert outcome(run_sweep(["test_resnet"], ["ilm_gn"], out)[0]) == "exact"
    assert outcome(run_sweep(["test_resnet"], ["ilm_gn"], out, max_parameters=1)[0]) == "exact"


def test_one_model_a_family_is_the_smallest_that_the_target_converts() -> None:
    entries = survey(["test_efficientnet", "test_efficientnet_gn", "test_resnet", "resnet18", "test_vit"])
    assert choose(entries, "ilm_gn") == ["test_efficientnet", "test_resnet"]
    small = {**entries[1], "parameters": 1}
    assert choose([entries[0], small], "ilm_gn") == ["test_efficientnet_gn"]
    assert choose([entries[0], small], "ilm_ln") == ["test_efficientnet"]


def _crash() -> None:
    os._exit(7)


def _hang() -> None:
    time.sleep(60)


def _hog() -> None:
    kept = torch.ones(1 << 28)
    time.sleep(60)
    del kept


def test_a_process_that_dies_hangs_or_takes_too_much_memory_ends_its_own_task_only() -> None:
    tasks = [Task(_crash, ()), Task(_hang, (), timeout=1.0), Task(_hog, (), timeout=60.0), Task(abs, (-3,))]
    found = {task.function: (result, error) for task, result, error in run_tasks(tasks, 2, memory=1 << 30)}
    assert found[abs] == (3, None)
    assert "exit code 7" in str(found[_crash][1])
    assert found[_hang] == (None, "took longer than 1 s")
    assert found[_hog] == (None, "took more than 1.0 GiB of memory")


def test_a_dead_process_is_the_error_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilmconvert.testing.sweep._run_known", _die)
    (line,) = run_sweep(["test_resnet"], ["ilm_gn"], tmp_path / "sweep.jsonl")
    assert outcome(line) == "failed"
    assert "exit code 7" in line["error"]
    assert line["family"] == "resnet"


def _die(*args: object) -> None:
    os._exit(7)


def _invoke(*args: str) -> Any:
    return CliRunner().invoke(command.sweep, args, standalone_mode=False)


def test_command_prints_counts_and_tells_failures_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "sweep.jsonl")
    result = _invoke("test_resnet", "--out", out)
    assert result.return_value == 0
    assert "exact" in result.output

    broken = {**read_lines(Path(out))[0], "error": "it broke"}
    monkeypatch.setattr("ilmconvert.testing.sweep.run_sweep", lambda *args, **settings: [broken])
    result = _invoke("test_resnet", "--out", out, "--json")
    assert result.return_value == 1
    assert json.loads(result.stdout)["failures"] == [broken]


def test_command_takes_several_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []
    keep = lambda names, *args, **settings: taken.append(names) or []  # noqa: E731
    monkeypatch.setattr("ilmconvert.testing.sweep.run_sweep", keep)
    for patterns in (("test_resnet", "resnet152", "*resnet152"), ("test_resnet",), ()):
        _invoke(*patterns, "--out", str(tmp_path / "sweep.jsonl"))
    assert taken[0][:2] == ["test_resnet", "resnet152"]
    assert len(taken[0]) == len(set(taken[0])) > 3
    assert taken[1:] == [["test_resnet"], list_models()]


@pytest.mark.parametrize("args", [("--to", "ilm_bn"), ("no_such_model*",), ("test_resnet", "no_such_model*")])
def test_command_refuses_what_it_does_not_know(args: tuple[str, ...]) -> None:
    with pytest.raises((click.BadParameter, ilmconvert.ModelError)):
        raise _invoke(*args).exception


def test_table_counts_every_outcome_and_names_failures() -> None:
    line = {
        "model": "m", "library": "timm", "family": "f", "to": "ilm_gn", "converted": 2, "skipped": {}, "refused": 0,
        "relative_error": 1e-7, "dtype": "float32", "parameters": 5, "executed": True, "exact": True, "error": None,
    }  # fmt: skip
    lines = [
        line,
        {**line, "model": "wide", "relative_error": 3e-7},
        {**line, "model": "deep", "dtype": "float64", "relative_error": 1e-13, "float32_error": None},
        {**line, "model": "large", "executed": False, "exact": False},
        {**line, "model": "bad", "exact": False, "error": "it | broke"},
        {**line, "model": "none", "converted": 0, "executed": False},
        {**line, "model": "groups", "refused": 1},
    ]
    assert {outcome(one) for one in lines} == set(OUTCOMES) - {"refused"}
    page = document(lines)
    assert "| timm | f | 6 | 6 | 3 | 1 | 0 | 1 | 1 | 3.0e-07 |" in page
    assert "### Failed: 1\n\n| model | reason |\n| --- | --- |\n| bad | it \\| broke |" in page
    assert "| deep | 1.0e-13 | not finite | not finite |  | 1.0 |" in page
    assert "measured on" not in page
    assert "| large | 5 | 2 |" in page


def test_table_says_when_it_was_measured_and_why_in_float64() -> None:
    line = {
        "model": "a", "library": "timm", "family": "f", "to": "ilm_gn", "converted": 2, "skipped": {}, "refused": 0,
        "relative_error": 1e-13, "dtype": "float64", "parameters": 5, "executed": True, "exact": True, "error": None,
        "float32_error": 4e-4, "source_rounding": 1e-4, "amplified_rounding": 2e-4, "measured": "2026-01-02",
    }  # fmt: skip
    lines = [
        line,
        {**line, "model": "b", "float32_error": 3e-5, "source_rounding": 1e-5, "amplified_rounding": 3e-6},
        {**line, "model": "c", "float32_error": None, "source_rounding": None, "measured": "2026-01-03"},
    ]
    page = document(lines, "## Before\n\nnumbers\n")
    assert "These are 3 of the 857 models that hold a norm, measured between 2026-01-02 and 2026-01-03." in page
    assert "The larger of the two is above 1e-05 for 2 of the 3;" in page
    assert "is 3.0 times as large in the median, and 3.0 times at most." in page
    assert "| a | 1.0e-13 | 4.0e-04 | 1.0e-04 | 2.0e-04 | 1.0 |" in page
    assert page.endswith("\n\n## Before\n\nnumbers\n")


def test_a_source_that_amplifies_rounding_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.ROUNDING, torch.float32, 0.0)
    line = run_model("test_resnet", "ilm_gn")
    assert line["dtype"] == "float64"
    assert 1e-8 < line["amplified_rounding"] < 1e-5
    assert 1e-8 < line["float32_error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_every_model_of_the_zoos(to: str, tmp_path: Path) -> None:
    lines = run_sweep(list_models(), [to], tmp_path / "sweep.jsonl", jobs=max(1, (os.cpu_count() or 2) // 2))
    assert [(line["model"], line["error"]) for line in lines if outcome(line) == "failed"] == []
