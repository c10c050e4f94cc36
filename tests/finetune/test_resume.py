"""A run that is killed and resumed ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ilmconvert
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import FineTuneError
from ilmconvert.finetune.run_folder import alone_in
from tests.finetune.finetune_jobs import CLASSES, RANDOM, bars, finish, kill_when, launch, network, run
from tests.helpers import relative_error

DROPOUT = {"drop_rate": 0.2, "drop_path_rate": 0.1}
SETTINGS: dict[str, Any] = {**RANDOM, "save_every": 1}
TIMES = ("images_per_second", "seconds")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").glob("step-*"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_bit_for_bit_the_same(tmp_path: Path, processes: int) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(launch(undisturbed, processes, model_args=DROPOUT, **SETTINGS))
    moments = [
        lambda: any(name.endswith("2.tmp") for name in states(killed)),  # in the middle of writing a state
        lambda: (killed / "metrics.csv").exists() and len(rows(killed)) == 2,  # between the metrics and the state
    ]
    for moment in moments:
        started = launch(killed, processes, resume=True, model_args=DROPOUT, **SETTINGS)
        assert kill_when(started, moment), "the run ended before it was killed"
    finish(launch(killed, processes, resume=True, model_args=DROPOUT, **SETTINGS))
    for name in ("best.safetensors", "last.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert rows(killed) == rows(undisturbed)
    assert len(rows(killed)) == 3
    assert states(killed) == ["step-00000008", "step-00000009"]
    assert not list(killed.glob(".*.tmp"))


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    settings = {"weight_decay": 1e-3, "no_aug": False, "smoothing": 0.1, "grad_accum": 2, "batch_size": 4}
    other = launch(tmp_path / "two", 2, **settings)
    run(tmp_path / "one", **settings)
    finish(other)
    one, two = (ilmconvert.load(tmp_path / name / "last.safetensors").state_dict() for name in ("one", "two"))
    start = ilmconvert.convert(network(num_classes=CLASSES)).state_dict()
    learnt = {key: float((one[key] - start[key]).abs().max()) for key in one if one[key].is_floating_point()}
    assert max(learnt.values()) > 1e-3, "nothing was learnt"
    for key, step in learnt.items():
        # Against what was learnt. Decoders whose gradient is rounding alone, 1e-10 and less, say nothing.
        assert float((two[key] - one[key]).abs().max()) < 1e-3 * max(step, 1e-6), key
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-4)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was interrupted in its third epoch."""

    def stop(progress: Any) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", progress=stop)
    return tmp_path / "run"


def test_half_written_and_damaged_states_are_ignored(stopped: Path, tmp_path: Path) -> None:
    run(tmp_path / "undisturbed")
    assert states(stopped) == ["step-00000003", "step-00000006"]
    half = stopped / "state" / "step-00000009.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    file = stopped / "state" / "step-00000006" / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:-10] + b"0123456789")
    with pytest.warns(UserWarning, match=r"step-00000006 is damaged \(optimizer.bin was changed\)"):
        run(stopped, resume=True)
    assert (stopped / "last.safetensors").read_bytes() == (tmp_path / "undisturbed/last.safetensors").read_bytes()
    assert states(stopped) == ["step-00000006", "step-00000009"]
    assert rows(stopped) == rows(tmp_path / "undisturbed")


def test_a_run_goes_on_with_another_number_of_processes(stopped: Path, tmp_path: Path) -> None:
    run(tmp_path / "undisturbed")
    finish(launch(stopped, 2, resume=True))
    one, two = (ilmconvert.load(f / "last.safetensors").state_dict() for f in (tmp_path / "undisturbed", stopped))
    assert max(relative_error(two[key], one[key]) for key in one) < 1e-4


def test_a_folder_is_not_written_over(stopped: Path) -> None:
    before = (stopped / "metrics.csv").read_bytes()
    with pytest.raises(FineTuneError, match="holds a run already; continue it with --resume"):
        run(stopped)
    with pytest.raises(FineTuneError, match=r"another run \(recipe epochs is 3, not 5; recipe lr is 0.01, not 0.02\)"):
        run(stopped, resume=True, lr=0.02, epochs=5)
    with pytest.raises(FineTuneError, match="model fingerprint is"):
        run(stopped, resume=True, model=network(drop_rate=0.5, in_chans=3).requires_grad_(True).apply(_shift))
    with pytest.raises(FineTuneError, match="data train is 24, not 16"):
        run(stopped, resume=True, data=bars(16))
    assert (stopped / "metrics.csv").read_bytes() == before


def test_a_run_of_which_too_little_was_written_down_is_refused_with_a_way_out(stopped: Path) -> None:
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    before = (stopped / "metrics.csv").read_bytes()
    missing = {"data": "input_size", "recipe": "cuda_graphs", "model": "head_replaced"}
    for part, key in missing.items():
        older = {**config, part: {name: value for name, value in config[part].items() if name != key}}
        (stopped / "config.yaml").write_text(yaml.safe_dump(older))
        with pytest.raises(FineTuneError, match=f"an earlier ilmconvert, which didn't write down {part} {key}, so"):
            run(stopped, resume=True)
        with pytest.raises(FineTuneError, match=r"holds another run .recipe lr is 0.01, not 0.02"):
            run(stopped, resume=True, lr=0.02)
    assert (stopped / "metrics.csv").read_bytes() == before
    run(stopped.parent / "new", resume=True, epochs=1)  # what the message says


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilmconvert.finetune.run_folder.WAIT", 0.0)
    first = launch(tmp_path / "run", epochs=200)

    def refused() -> bool:
        if not (tmp_path / "run" / "metrics.csv").exists():
            return False
        with pytest.raises(FineTuneError, match="another process is running in"):
            run(tmp_path / "run", resume=True, epochs=200)
        return True

    assert kill_when(first, refused)
    with alone_in(tmp_path / "run"):
        pass  # the lock went with the process


def _shift(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.reset_parameters()
    if isinstance(module, torch.nn.BatchNorm2d):
        module.running_mean += 1


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    first = run(tmp_path / "run", epochs=1)
    changed = (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns
    again = run(tmp_path / "run", epochs=1, resume=True, workers=1)
    assert again.summary == first.summary
    assert again.best == first.best
    assert (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns == changed


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ILMConvertError, match="is a file; name a folder"):
        run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(json.dumps([1]))
    with pytest.raises(FineTuneError, match="isn't the configuration of a run"):
        run(tmp_path / "other", resume=True)
