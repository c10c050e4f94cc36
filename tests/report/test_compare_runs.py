"""Several runs put together: what is one network, what is paired with what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ilmconvert.cli import main
from ilmconvert.errors import ReportError
from ilmconvert.finetune import get_recipe
from ilmconvert.finetune.run_folder import RunFolder
from ilmconvert.report import compare_runs
from ilmconvert.report.notebook import run_comparison
from ilmconvert.report.text import NONE

FROZEN = "BatchNorm, statistics frozen"


def write(
    path: Path, seed: int, top1: float | None, *, status: str = "finished", data: dict[str, Any] | None = None,
    baselines: dict[str, float] | None = None, **recipe: Any,
) -> Path:  # fmt: skip
    """The folder of a run, as far as it is read."""
    config = {
        "recipe": get_recipe(recipe.pop("recipe", "full"), seed=seed, **recipe).to_dict(),
        "model": {"name": "net", "converted_here": True},
        "data": {"train": 80, "val": 40, "classes": ["cat", "dog"], **(data or {})},
    }
    for name, accuracy in {"": top1, **(baselines or {})}.items():
        run = RunFolder(path / "baselines" / name if name else path)
        run.write_config({**config, **({"baseline": name} if name else {})})
        run.write_summary({"status": status, "best": {"epoch": 1, "val_top1": accuracy}})
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A recipe that is ahead of frozen BatchNorm by about two points in each seed, and one that isn't."""
    found = []
    for seed, base in enumerate((0.5, 0.7, 0.6)):
        frozen = {"frozen-bn": base, "train-bn": base - 0.4}
        found.append(write(tmp_path / f"a{seed}", seed, base + 0.02 + 0.001 * seed, baselines=frozen))
        found.append(write(tmp_path / f"b{seed}", seed, base + 0.02 * (seed - 1), recipe="first-norm"))
    return found


def test_runs_of_one_recipe_are_one_network_and_differences_are_paired(runs: list[Path]) -> None:
    found = compare_runs(runs)
    assert [network.title for network in found.networks] == [
        "ILM-GN",
        "ILM-IN in the first norm",
        FROZEN,
        "BatchNorm, training",
    ]
    assert [list(network.top1) for network in found.networks] == [[0, 1, 2]] * 4
    first, second, frozen, training = found.table().texts()
    assert first == ("ILM-GN", "3", "62.1 ± 25.0 %", "+2.1 ± 0.2")  # paired: far less than the spread over seeds
    assert second[3] == "+0.0 ± 5.0"
    assert frozen[3] == NONE
    assert training[3] == "-40.0 ± 0.0"
    assert str(found).splitlines() == [
        f"ILM-GN is ahead of {FROZEN}: +2.1 ± 0.2 points over 3 seeds",
        f"ILM-IN in the first norm can't be told from {FROZEN}: +0.0 ± 5.0 points over 3 seeds",
        f"BatchNorm, training is behind {FROZEN}: -40.0 ± 0.0 points over 3 seeds",
    ]
    assert "ILM-IN in the first norm" in run_comparison(found)
    other = compare_runs(runs, against="train-bn")
    assert other.table().texts()[0][3] == "+42.1 ± 0.2"


def test_networks_of_one_name_are_told_apart_and_frozen_is_taken_at_its_best(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / f"{seed}-{lr}", seed, 0.5 + lr, lr=lr, baselines={"frozen-bn": 0.6 - lr})
        for seed in (0, 1)
        for lr in (0.01, 0.02)
    ]
    found = compare_runs(folders)
    assert [n.title for n in found.networks] == [
        *("ILM-GN, lr 0.01", "ILM-GN, lr 0.02"),
        *(f"{FROZEN}, lr 0.01", f"{FROZEN}, lr 0.02"),
    ]
    assert found.against is found.networks[2]
    # what means nothing to a baseline doesn't make another one of it
    folders.append(write(tmp_path / "bound", 0, 0.4, lr=0.01, restore_bound=2.0, baselines={"frozen-bn": 0.59}))
    assert len(compare_runs(folders).networks) == 5
    assert "ILM-GN, lr 0.01, restore_bound 2.0" in [n.title for n in compare_runs(folders).networks]


def test_without_baselines_networks_are_compared_with_the_first(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0, 0.5), write(tmp_path / "b", 0, 0.6, to="ilm_ln")
    found = compare_runs([a, b])
    assert found.against is found.networks[0]
    assert str(found) == "ILM-LN, ILM-GN: one seed tells nothing; run more by ilmconvert finetune --seed N"
    alone = compare_runs([a, write(tmp_path / "c", 1, 0.5)])
    assert alone.against is None
    assert str(alone) == ""
    assert alone.table().columns == ("network", "seeds", "top-1")


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(ReportError, match=r"no run has the baseline group-norm; they have frozen-bn, train-bn"):
        compare_runs(runs, against="group-norm")
    with pytest.raises(ReportError, match="finetune --baseline frozen-bn runs it"):
        compare_runs([runs[1]], against="frozen-bn")
    with pytest.raises(ReportError, match=r"have other images \(classes\)"):
        compare_runs([runs[0], write(tmp_path / "others", 0, 0.5, data={"classes": ["hat"]})])
    with pytest.raises(ReportError, match="no accuracy was measured"):
        compare_runs([write(tmp_path / "blind", 0, None)])
    young = write(tmp_path / "young", 5, 0.9, status="running")
    with pytest.warns(UserWarning, match=r"young isn't finished; it is left out"):
        assert 5 not in compare_runs([*runs, young]).networks[0].top1
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ReportError, match="none of these runs"):
        compare_runs([young])


def test_the_command(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["report", *map(str, runs)]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    assert "6 runs" in shown.stdout
    assert f"ILM-GN is ahead of {FROZEN}: +2.1 ± 0.2 points over 3 seeds" in shown.stdout
    content = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert content["against"] == FROZEN
    assert content["networks"][0]["top1"] == {"0": 0.52, "1": 0.721, "2": 0.622}
    assert content["networks"][0]["difference"]["mean"] == pytest.approx(0.021)
    for wrong, cure in ((["--html"], "name one"), (["--against", "group-norm"], "they have frozen-bn")):
        refused = CliRunner().invoke(main, [*words, *wrong])
        assert refused.exit_code == 2
        assert cure in refused.stderr
    assert "name more than one" in CliRunner().invoke(main, [*words[:2], "--against", "frozen-bn"]).stderr
