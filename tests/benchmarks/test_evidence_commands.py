"""The evidence runner: its commands resume, and show what they found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import batch_sizes, from_scratch, noise, plot, stability, tables
from benchmarks.evidence.arms import ARMS, FROZEN
from benchmarks.evidence.begin import normalized
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.paired import COLUMNS
from benchmarks.evidence.runs import FINAL, SELECTION, read
from benchmarks.evidence.small_resnet import NORMS
from benchmarks.evidence.train import Settings
from ilmconvert.errors import ILMConvertError
from ilmconvert.surgery.input_standardization import standardize
from tests.benchmarks.evidence_jobs import small_network, write_cifar10_package


def known(folder: Path) -> dict[tuple[str, str, int, Settings], float]:
    return {(r.arm, r.phase, r.seed, r.settings): r.accuracy for r in read(folder / "runs.jsonl")}


def test_command_resumes_and_its_tables_and_plot_show_the_runs(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--arms", FROZEN, "ilm-gn-range"]
    threads = torch.get_num_threads()
    command.main(options)
    first = (tmp_path / "runs.jsonl").read_text()
    runs = [json.loads(line) for line in first.splitlines()]
    assert {entry["phase"] for entry in runs} == {SELECTION, FINAL}
    final = [entry for entry in runs if entry["phase"] == FINAL]
    assert [(entry["arm"], entry["seed"]) for entry in final] == [
        (a, s) for s in (0, 1) for a in (FROZEN, "ilm-gn-range")
    ]
    assert list(final[0]["shifted"]) == list(COLUMNS[1:])
    assert set(final[1]["moved"]) == {"affine", "restore", "gate", "offset", "meta"}
    command.main(options)
    assert (tmp_path / "runs.jsonl").read_text() == first
    # all at once they come out the same
    out = tmp_path / "together"
    command.main([*options[2:], "--out", str(out), "--cache", str(tmp_path / "cache"), "--together"])
    assert known(tmp_path).items() <= known(out).items()
    # a run that is missing is made again and comes out as it was
    (tmp_path / "runs.jsonl").write_text("".join(line + "\n" for line in first.splitlines()[:-1]))
    command.main(options)
    again = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[-1])
    assert {**again, "seconds": 0} == {**runs[-1], "seconds": 0}
    capsys.readouterr()
    tables.main([str(tmp_path / "runs.jsonl")])
    text = capsys.readouterr().out
    assert f"| {ARMS['ilm-gn-range'].title} | 2 |" in text
    assert "How far the norms moved" in text
    plot.main([str(tmp_path / "runs.jsonl"), "-o", str(tmp_path / "plot.svg"), "--arms", "ilm-gn-range"])
    assert ARMS["ilm-gn-range"].title in (tmp_path / "plot.svg").read_text()
    plot.main([str(tmp_path / "runs.jsonl"), "-o", str(tmp_path / "plot.svg"), "--against", "ilm-gn-range"])
    assert f"accuracy less {ARMS['ilm-gn-range'].title}" in (tmp_path / "plot.svg").read_text()
    torch.set_num_threads(threads)


def test_a_budget_takes_the_settings_of_another(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--together", "--arms", FROZEN]
    with pytest.raises(SystemExit):
        command.main([*(option for option in options if option != "--together"), "--compile"])
    with pytest.raises(ILMConvertError, match=f"medium, which has no runs of {FROZEN}; run it first"):
        command.main([*options, "--budgets", "long"])
    command.main([*options, "--budgets", "medium", "long"])
    phases = [(run.budget, run.phase) for run in read(tmp_path / "runs.jsonl")]
    assert set(phases) == {("medium", "selection"), ("medium", "final"), ("long", "final")}
    chosen = {run.settings for run in read(tmp_path / "runs.jsonl") if run.phase == "final"}
    assert len(chosen) == 1
    command.main([*options, "--budgets", "medium", "long"])
    assert len(list(read(tmp_path / "runs.jsonl"))) == len(phases)


def test_networks_from_scratch_are_compared_with_their_base(
    tmp_path: Path, fashion_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--batch-sizes", "4"]
    options += ["--norms", "GN", "ILM-GN", "ILM-GN, authors' start"]
    from_scratch.main(options)
    lines, printed = (tmp_path / "from_scratch.jsonl").read_text(), capsys.readouterr().out
    assert len(lines.splitlines()) == 3 * (len(from_scratch.QUICK.rates) + 2)
    assert printed.count("ILM-GN") == 2
    from_scratch.main(options)
    assert (tmp_path / "from_scratch.jsonl").read_text() == lines
    assert capsys.readouterr().out == printed
    from_scratch.main([*options, "--table"])
    assert capsys.readouterr().out == printed
    (tmp_path / "from_scratch.jsonl").write_text("".join(line + "\n" for line in lines.splitlines()[:-1]))
    from_scratch.main(
        [*options, "--table"]
    )  # the norm whose last run is missing has a seed less, and nothing is trained
    assert capsys.readouterr().out.count("| 1 |") == 1


def test_networks_from_scratch_see_the_colours_of_cifar_10(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar10_package(tmp_path, rows=12)
    out, norms = ["--out", str(tmp_path), "--quick", "--batch-sizes", "4"], ["--norms", "GN"]
    from_scratch.main([*out, *norms, "--set", "cifar-10", "--data-root", str(tmp_path)])
    assert "From scratch, cifar-10" in capsys.readouterr().out
    from_scratch.main([*out, "--table"])  # of the other set there is nothing
    assert not capsys.readouterr().out
    network = from_scratch.train("GN", 0.02, 4, from_scratch.load("cifar-10", tmp_path, tmp_path).val, 1, seed=0)
    assert network[0].in_channels == 3


@pytest.mark.gpu
def test_a_gpu_trains_from_scratch_what_a_cpu_does(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as the command has it
    images = from_scratch.load("fashion-mnist", tmp_path, fashion_root).train
    for norm in ("GN", "ILM-GN"):
        here, there = (from_scratch.train(norm, 0.02, 4, images.to(d), 2, seed=0).cpu() for d in ("cpu", "cuda"))
        for name, parameter in here.named_parameters():
            assert torch.allclose(parameter, there.get_parameter(name), rtol=1e-2, atol=1e-3), (norm, name)


def test_an_ilm_norm_starts_as_its_base_and_the_authors_start_does_not() -> None:
    x = torch.rand(4, 64, 5, 5)
    ours, base, theirs = (NORMS[name](64) for name in ("ILM-GN", "GN", "ILM-GN, authors' start"))
    assert torch.allclose(ours(x), base(x), atol=1e-5)
    assert 1.2 < (theirs(x).std() / base(x).std()).item() < 1.8


def test_batch_sizes_are_swept_and_drawn(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_sizes, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--batch-sizes", "1", "4"]
    threads = torch.get_num_threads()
    figure = tmp_path / "batch_sizes.svg"
    batch_sizes.main([*options, "--arms", FROZEN, "ilm-gn", "-o", str(figure)])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("| network | 1 | 4 |") == 2
    assert printed.count(ARMS["ilm-gn"].title) == 2
    assert ARMS["ilm-gn"].title in figure.read_text()
    out = tmp_path / "together"
    batch_sizes.main([*options[2:], "--out", str(out), "--arms", FROZEN, "ilm-gn", "--together"])
    assert capsys.readouterr().out == printed
    alone, together = ((folder / "batch_sizes.jsonl").read_text().splitlines() for folder in (tmp_path, out))
    assert sorted(alone) == sorted(together)
    batch_sizes.main([*options, "--table"])  # the other arms aren't there, and nothing is trained
    assert capsys.readouterr().out == printed
    batch_sizes.main(["--out", str(tmp_path), "--table", "--larger"])  # of it nothing is there
    assert capsys.readouterr().out == "\n"


def test_many_images_come_in_large_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, scale = Lines(tmp_path / "batch_sizes.jsonl"), batch_sizes.LARGER
    results = batch_sizes.Results(lines, scale)
    for arm, accuracy in (("frozen-bn-warm", 0.5), ("train-bn-fast-warm", 0.75)):
        point = batch_sizes.Point(arm, 128)
        for rate in batch_sizes.rates_at(128):
            results.keep(batch_sizes.Job(*point, rate, batch_sizes.SELECTION_SEED), accuracy - rate)
        for seed in scale.seeds:
            results.keep(batch_sizes.Job(*point, results.rate(point), seed), accuracy)
    batch_sizes.main(["--out", str(tmp_path), "--table", "--larger"])
    printed = capsys.readouterr().out
    assert printed.count("| network | 128 |") == 2
    assert "| +0.250 ± 0.000 |" in printed


def test_guesses_about_noise_are_measured_once(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(noise, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--sets", "fashion-mnist"]
    threads = torch.get_num_threads()
    noise.main(options)
    printed = capsys.readouterr().out
    assert "| statistics | seeds | clean | noise 3 | noise 3, statistics of the clean image |" in printed
    assert [way in printed for way in noise.WAYS] == [True] * len(noise.WAYS)
    monkeypatch.setattr(noise, "train", None)  # nothing is trained again
    noise.main([*options, "--table"])
    assert capsys.readouterr().out == printed
    *lines, _ = (tmp_path / "noise.jsonl").read_text().splitlines()
    (tmp_path / "noise.jsonl").write_text("".join(f"{line}\n" for line in lines))
    noise.main([*options, "--table"])  # of the seeds that are complete
    torch.set_num_threads(threads)
    assert f"| {next(iter(noise.WAYS))} | {len(noise.SEEDS) - 1} |" in capsys.readouterr().out


def test_standardisations_of_the_guesses_about_noise() -> None:
    training, pixels = (torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    std = normalized(training).std((1, 2, 3), correction=0).mean().item()
    usual, averaged, uncentred = (way.fitted(training)(pixels) for way in noise.WAYS.values())
    torch.testing.assert_close(usual, standardize(normalized(pixels), std))
    torch.testing.assert_close(usual + normalized(training).mean((1, 2, 3)).mean(), uncentred)
    assert averaged.mean((1, 2, 3)).abs().max() < 1e-5
    of_all, of_means, _ = (way.statistics(pixels)[0] for way in noise.WAYS.values())
    assert (of_means < of_all / 4).all()  # of pure noise an eighth, and what the channels differ by


def test_rate_and_clip_are_measured_once(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stability, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick"]
    threads = torch.get_num_threads()
    stability.main(options)
    printed = capsys.readouterr().out
    assert printed.count(ARMS["ilm-gn-bound"].title) == len(stability.STEPS)
    monkeypatch.setattr(stability, "train", None)  # nothing is trained again
    stability.main(options)
    torch.set_num_threads(threads)
    assert capsys.readouterr().out == printed
