"""The evidence runner: its sets, its choice of settings, its arms, that it resumes, and its tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import batch_sizes, from_scratch, plot, rates, stability, tables
from benchmarks.evidence.arms import ARMS, FROZEN, Arm
from benchmarks.evidence.movement import movement
from benchmarks.evidence.paired import CLEAN, COLUMNS, differences, estimate, finals, of
from benchmarks.evidence.runs import FINAL, SELECTION, Run, RunFile, read
from benchmarks.evidence.select import RATES, SEEDS, at_edge, choose
from benchmarks.evidence.sets import Images, draw, drawings, load_splits
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS, shift, shifted_sets
from benchmarks.evidence.stacked import stackable
from benchmarks.evidence.together import Task, Together, train_all
from benchmarks.evidence.train import BATCH_SIZE, Settings, predictions, prepared_for, train
from ilmconvert.errors import ILMConvertError
from ilmconvert.nn import ILMNorm
from ilmconvert.testing import randomize_norms
from tests.helpers import ROOT, write_fashion_mnist


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    return write_fashion_mnist(tmp_path / "root")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))
    randomize_norms(network)
    return network.eval()


def small_images(count: int = 12, size: int = 16) -> Images:
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(40, 255, count).view(-1, 1, 1, 1)
    pixels = (torch.rand(count, 3, size, size, generator=generator) * levels).to(torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def run(arm: str, seed: int, accuracy: float, **others: object) -> Run:
    shifted = dict.fromkeys(COLUMNS[1:], accuracy)
    made = Run("fashion-mnist", 64, "short", arm, FINAL, seed, 0.005, 0.5, 0.1, accuracy, 1.0, 2.0, shifted)
    return replace(made, **others)  # type: ignore[arg-type]


def test_training_validation_and_test_images_are_different_ones(fashion_root: Path, tmp_path: Path) -> None:
    splits = load_splits("fashion-mnist", 28, tmp_path / "cache", fashion_root)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [50, 10, 12]
    every = torch.cat([splits.train.pixels, splits.val.pixels, splits.test.pixels]).flatten(1)
    assert len(every.unique(dim=0)) == 72
    assert splits.num_classes == 10


def test_a_set_is_made_once(fashion_root: Path, tmp_path: Path) -> None:
    first = load_splits("fashion-mnist", 28, tmp_path / "cache", fashion_root)
    for file in (fashion_root / "FashionMNIST" / "raw").iterdir():
        file.unlink()
    again = load_splits("fashion-mnist", 28, tmp_path / "cache", fashion_root)
    assert torch.equal(first.train.pixels, again.train.pixels)


def test_clip_art_is_split_by_content_and_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.evidence.sets.SUBJECTS", ("animals", "food"))
    rng = np.random.default_rng(0)
    for subject in ("animals", "food"):
        (tmp_path / subject).mkdir()
        for i in range(40):
            image = Image.fromarray(rng.integers(0, 256, (20, 30, 4)).astype(np.uint8))
            for copy in ("a", "b"):
                image.save(tmp_path / subject / f"{i}{copy}.png")
    splits = load_splits("clipart", 16, tmp_path / "cache", tmp_path)
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 80
    assert min(len(part) for part in (splits.train, splits.val, splits.test)) > 0
    assert (splits.train.pixels[:, :, 0] == 255).all()  # the paper above a wide drawing


def test_drawings_too_large_to_be_opened_safely_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("small", 20), ("large", 200), ("larger", 400)):
        Image.new("RGBA", (size, size)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # a warning beyond, an error beyond twice that
    assert len(list(drawings(tmp_path, 16))) == 1


def test_mixed_light_changes_the_light_of_most_images_and_no_label(fashion_root: Path, tmp_path: Path) -> None:
    plain, mixed = (load_splits(name, 32, tmp_path, fashion_root) for name in ("fashion-mnist", "mixed-light"))
    for part in ("train", "val", "test"):
        before, after = getattr(plain, part), getattr(mixed, part)
        assert torch.equal(before.labels, after.labels)
        same = (before.pixels == after.pixels).flatten(1).all(1).double().mean()
        assert 0 < same < 0.6


def test_missing_files_and_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ILMConvertError, match="use one of fashion-mnist, clipart"):
        load_splits("letters", 28, tmp_path)
    with pytest.raises(ILMConvertError, match="--data-root"):
        load_splits("fashion-mnist", 28, tmp_path, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ILMConvertError, match="--data-root"):
        load_splits("fashion-mnist", 28, tmp_path, tmp_path / "empty")


def test_a_seed_draws_its_own_images() -> None:
    images = small_images()
    first, again, other = (draw(images, 5, seed).pixels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_shift_changes_images_more_at_the_higher_severity() -> None:
    pixels = small_images(4, size=64).pixels
    found = dict(shifted_sets(pixels, seed=3))
    assert list(found) == list(COLUMNS[1:])
    for name in SHIFTS:
        low, high = ((found[f"{name} {s}"].float() - pixels).abs().mean() for s in SEVERITIES)
        assert 0 < low < high, name


def test_inversion_at_its_end_is_the_negative() -> None:
    image = torch.rand(3, 4, 4)
    assert torch.allclose(shift(image, "inversion", 5, seed=0), 1 - image)


def test_choice_takes_the_better_mean_of_the_best_two_rates_and_aids_that_help_twice() -> None:
    asked = []
    table = {(0.002, 1000): 0.5, (0.005, 1000): 0.8, (0.012, 1000): 0.79, (0.03, 1000): 0.1}
    table |= {(0.005, 1001): 0.7, (0.012, 1001): 0.75}

    def score(settings: Settings, seed: int) -> float:
        asked.append((settings, seed))
        gain = {0.5: 0.0, 0.0: 0.02}[settings.distill] + {0.1: 0.0, 1.0: 0.05 if seed == SEEDS[0] else -0.2}[
            settings.norm_scale
        ]
        return table[settings.rate, seed] + gain

    assert choose(score) == Settings(0.012, distill=0.0, norm_scale=0.1)
    assert {seed for _, seed in asked} == set(SEEDS)
    assert not at_edge(Settings(0.012))
    assert at_edge(Settings(max(RATES)))


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_its_network(name: str) -> None:
    images, source = small_images(), small_network()
    before = {key: value.clone() for key, value in source.state_dict().items()}
    trained = train(ARMS[name], Settings(0.01), source, images, 3, 1, seed=0)
    assert not trained.diverged
    assert not trained.network.training
    assert predictions(trained.network, trained.prepare, images).shape == (12,)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    ends = dict(trained.network.named_parameters())
    changed = {key for key, value in trained.start.named_parameters() if not torch.equal(value, ends[key])}
    assert "7.weight" in changed
    assert ("3.weight" in changed) == (name != "ilm-gn-norm")
    assert any(isinstance(m, ILMNorm) for m in trained.network.modules()) == name.startswith("ilm")


@pytest.mark.parametrize("name", ARMS)
def test_runs_trained_together_are_those_trained_alone(name: str) -> None:
    source, others = small_network(), small_images().subset(list(range(11, -1, -1)))
    tasks = [Task(Settings(0.01), 0, small_images()), Task(Settings(0.002, 0.0, 1.0), 1, others)]
    group = Together(ARMS[name], tasks, source, 3, 2)
    train_all([group])
    for task, found in zip(tasks, group.results(), strict=True):
        alone = train(ARMS[name], task.settings, source, task.images, 3, 2, seed=task.seed)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)
        assert found.gradient == pytest.approx(alone.gradient, rel=1e-4)
        begin, end = alone.start.state_dict(), alone.network.state_dict()
        moved = sum((end[key] - begin[key]).double().square().sum().item() for key in begin)
        off = sum(
            (end[key] - value).double().square().sum().item() for key, value in found.network.state_dict().items()
        )
        assert off < 1e-6 * moved


@pytest.mark.parametrize(("recipe", "share"), [({"opt": "lamb"}, 0.0), ({"opt": "adamw"}, 0.5)], ids=str)
def test_what_the_stacked_optimizer_does_not_do_is_refused(recipe: dict[str, str], share: float) -> None:
    arm = Arm("", ARMS[FROZEN].build, recipe=recipe, freeze_share=share)
    with pytest.raises(ILMConvertError, match=f"{recipe['opt']}.* can't be trained together"):
        Together(arm, [Task(Settings(0.01), 0, small_images())], small_network(), 3, 2)


def test_convolutions_of_one_position_are_the_same_as_products() -> None:
    network, x = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1, bias=False)), torch.randn(3, 8, 5, 6)
    expected = network(x)
    assert torch.allclose(stackable(network)(x), expected, atol=1e-6)


def test_a_run_that_diverges_among_others_stays_as_it_was_and_leaves_them_alone() -> None:
    tasks = [Task(Settings(rate), 0, small_images()) for rate in (0.01, 1e30)]
    group = Together(ARMS[FROZEN], tasks, small_network(), 3, 1)
    train_all([group])
    fine, diverged = group.results()
    assert diverged.diverged
    alone = train(ARMS[FROZEN], Settings(0.01), small_network(), small_images(), 3, 1, seed=0)
    assert fine.loss == pytest.approx(alone.loss, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [FROZEN, "train-bn", "ilm-gn-range", "ilm-ln-anneal"])
def test_graphs_side_by_side_train_what_the_processor_trains(name: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    tasks = [Task(Settings(0.01), 0, small_images()), Task(Settings(0.002, 0.0, 1.0), 1, small_images())]
    on_gpu = [replace(task, images=task.images.to("cuda")) for task in tasks]
    groups = [Together(ARMS[name], on_gpu, small_network().cuda(), 3, 2) for _ in range(2)]
    train_all(groups)
    for group in groups:
        for task, found in zip(tasks, group.results(), strict=True):
            alone = train(ARMS[name], task.settings, small_network(), task.images, 3, 2, seed=task.seed)
            assert found.loss == pytest.approx(alone.loss, rel=1e-3)


@pytest.mark.parametrize("name", ["ilm-gn", "ilm-gn-range", "ilm-ln"])
def test_exact_starts_compute_what_frozen_batch_norm_does_on_training_images(name: str) -> None:
    images, source = small_images(), small_network()
    # a range leaves a tenth of the images beyond each of two limits
    x = prepared_for(ARMS[name], images)(images.pixels)
    expected, found = ARMS[FROZEN].build(source, x)(x), ARMS[name].build(source, x)(x)
    equal = torch.isclose(found, expected, atol=1e-4).all(1).double().mean()
    assert equal >= (0.7 if name == "ilm-gn-range" else 1.0)


def test_frozen_and_trained_statistics() -> None:
    def statistics(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        trained = train(ARMS[name], Settings(0.01), small_network(), small_images(), 3, 1, seed=0)
        start, end = (network.get_submodule("1").running_mean for network in (trained.start, trained.network))
        assert isinstance(start, torch.Tensor)
        assert isinstance(end, torch.Tensor)
        return start, end

    assert torch.equal(*statistics(FROZEN))
    assert not torch.equal(*statistics("train-bn"))
    reestimated = statistics("frozen-bn-reestimated")
    assert torch.equal(*reestimated)
    assert not torch.equal(reestimated[0], statistics(FROZEN)[0])


def test_standardised_arms_do_not_see_light_and_contrast() -> None:
    images = small_images()
    prepare = prepared_for(ARMS["frozen-bn-standardised"], images)
    x = images.pixels // 2
    # halving bytes is a change of contrast in normalised units, up to the channels' own means
    grey = x[:, :1].expand(-1, 3, -1, -1)
    whole, half = prepare(grey * 2), prepare(grey)
    assert torch.allclose(whole.mean((1, 2, 3)), half.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(whole.std((1, 2, 3)), half.std((1, 2, 3)), atol=1e-3)


def test_distillation_and_frozen_backbone_change_the_result() -> None:
    images, source = small_images(), small_network()
    ends = [
        train(arm, Settings(0.01, distill), source, images, 3, 1, seed=0).network.get_parameter("0.weight")
        for arm, distill in (
            (ARMS["ilm-gn"], 0.5),
            (ARMS["ilm-gn"], 0.0),
            (ARMS["ilm-gn-freeze"], 0.0),
            (Arm("", ARMS["ilm-gn"].build, freeze_share=0.9), 0.0),
        )
    ]
    assert len({end.sum().item() for end in ends}) == len(ends)
    moved = [(end - source.get_parameter("0.weight")).norm().item() for end in ends]
    assert moved[-1] == 0 < moved[2]  # six steps, all of them before nine tenths of the run


def test_movement_of_a_network_that_did_not_move_is_nothing_and_of_one_that_did_is_seen() -> None:
    images, source = small_images(), small_network()
    trained = train(ARMS["ilm-gn"], Settings(0.01), source, images, 3, 1, seed=0)
    still = movement(replace(trained, network=trained.start), images)
    assert still == {"affine": 0.0, "restore": 0.0, "gate": 0.0, "offset": 0.0, "meta": 0.0}
    layers = [m for m in trained.network.modules() if isinstance(m, ILMNorm)]
    for layer in layers:
        nn.init.constant_(layer.weight_decoder, -99.0)  # the scale falls by a half for one image as for another
        nn.init.normal_(layer.bias_decoder, std=9.0)
        assert layer.restore_weight is not None
        assert layer.weight is not None
        nn.init.zeros_(layer.restore_weight)
        nn.init.constant_(layer.weight, 0.5)
    moved = movement(trained, images)
    assert min(moved[key] for key in ("affine", "restore", "gate", "offset")) > 0
    assert moved["meta"] > 0


def test_a_line_that_was_cut_off_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    file.add(run(FROZEN, 0, 0.5))
    whole = file.path.read_text()
    file.path.write_text(whole + whole[:20])
    again = RunFile(file.path)
    again.add(run(FROZEN, 1, 0.6))
    assert [found.seed for found in read(file.path)] == [0, 1]
    file.path.write_text("no run\n" + whole)
    with pytest.raises(ILMConvertError, match="line 1"):
        list(read(file.path))


def test_intervals_are_students_over_paired_differences() -> None:
    runs = [run(FROZEN, seed, accuracy) for seed, accuracy in enumerate([0.6, 0.7, 0.8])]
    runs += [run("ilm-gn", seed, accuracy) for seed, accuracy in enumerate([0.7, 0.8, 0.9, 0.1])]
    values = differences(finals(runs, "fashion-mnist", "short"), "ilm-gn", of(CLEAN))
    assert values == pytest.approx([0.1, 0.1, 0.1])  # the fourth seed has nothing to be compared with
    found = estimate([0.0, 0.1, 0.2, 0.3])
    assert found.error == pytest.approx(0.0645497)
    assert found.half == pytest.approx(3.182446 * 0.0645497, rel=1e-5)
    assert estimate([0.1]).half is None


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
    torch.set_num_threads(threads)


def test_settings_that_were_not_tried_together_are_shown_without_an_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distillation off and the norms' full rate each help, so both are kept; no selection run has both."""
    file = RunFile(tmp_path / "runs.jsonl")
    for seed in SEEDS:
        file.add(run("ilm-gn", seed, 0.6, phase=SELECTION, rate=0.002))
        file.add(run("ilm-gn", seed, 0.7, phase=SELECTION))
        file.add(run("ilm-gn", seed, 0.75, phase=SELECTION, distill=0.0))
        file.add(run("ilm-gn", seed, 0.75, phase=SELECTION, norm_scale=1.0))
    tables.main([str(file.path)])
    assert "| 0.005 | 0 | x1 | - | 8 |" in capsys.readouterr().out


def test_a_plot_without_final_runs_is_refused(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    file.add(run(FROZEN, SEEDS[0], 0.5, phase=SELECTION))
    with pytest.raises(ILMConvertError, match="no final runs of fashion-mnist, short"):
        plot.main([str(file.path), "-o", str(tmp_path / "plot.svg")])


def test_training_takes_whole_batches() -> None:
    with pytest.raises(ILMConvertError, match="1 training images"):
        train(ARMS[FROZEN], Settings(0.01), small_network(), small_images(BATCH_SIZE - 1), 3, 1, seed=0)


def test_networks_from_scratch_are_compared_with_their_base(
    tmp_path: Path, fashion_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--batch-sizes", "4"]
    options += ["--norms", "GN", "ILM-GN", "ILM-GN, authors' start"]
    from_scratch.main(options)
    lines, printed = (tmp_path / "from_scratch.jsonl").read_text(), capsys.readouterr().out
    assert len(lines.splitlines()) == 3 * (len(from_scratch.RATES) + 2)
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


def test_an_ilm_norm_starts_as_its_base_and_the_authors_start_does_not() -> None:
    x = torch.rand(4, 64, 5, 5)
    ours, base, theirs = (from_scratch.NORMS[name](64) for name in ("ILM-GN", "GN", "ILM-GN, authors' start"))
    assert torch.allclose(ours(x), base(x), atol=1e-5)
    assert 1.2 < (theirs(x).std() / base(x).std()).item() < 1.8


def test_batch_sizes_are_swept_and_drawn(
    tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_sizes, "load_lite0", small_network)
    options = ["--out", str(tmp_path), "--data-root", str(fashion_root), "--quick", "--batch-sizes", "1", "4"]
    threads = torch.get_num_threads()
    batch_sizes.main([*options, "--arms", FROZEN, "ilm-gn"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "| network | 1 | 4 |" in printed
    out = tmp_path / "together"
    batch_sizes.main([*options[2:], "--out", str(out), "--arms", FROZEN, "ilm-gn", "--together"])
    assert capsys.readouterr().out == printed
    alone, together = ((folder / "batch_sizes.jsonl").read_text().splitlines() for folder in (tmp_path, out))
    assert sorted(alone) == sorted(together)
    assert ARMS["ilm-gn"].title in (tmp_path / "batch_sizes.svg").read_text()


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


def test_a_clip_below_the_gradient_sets_the_length_of_the_first_step() -> None:
    images, source = small_images(2), small_network()

    def moved(rate: float, clip: float) -> float:
        arm = Arm("", ARMS["ilm-gn"].build, recipe={"weight_decay": 0.0, "head_lr_scale": 1.0})
        trained = train(arm, Settings(rate, 0.0, 1.0), source, images, 3, 1, seed=0, clip=clip)
        assert trained.gradient > clip
        pairs = zip(trained.start.parameters(), trained.network.parameters(), strict=True)
        return math.sqrt(sum((b - a).square().sum().item() for a, b in pairs))

    expected = 1.9 * 2e-4  # the first step of Nesterov's momentum 0.9 is 1.9 times the gradient
    assert moved(0.02, 0.01) == pytest.approx(expected, rel=0.05)
    assert moved(0.002, 0.1) == pytest.approx(expected, rel=0.05)


def test_rates_are_shown_with_what_was_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift_ in (("runs", 0.0), ("before-a-change", 0.1)):
        file = RunFile(tmp_path / f"{name}.jsonl")
        file.add(run("ilm-gn", SEEDS[0], 0.6 + shift_, phase=SELECTION))
        file.add(run("ilm-gn", SEEDS[1], 0.7 + shift_, phase=SELECTION))
        file.add(run("ilm-gn", SEEDS[0], 0.9, phase=SELECTION, distill=0.0))
    files = [str(file) for file in tmp_path.glob("*.jsonl")]
    rates.main([*files, "-o", str(tmp_path / "rates.svg")])
    title = ARMS["ilm-gn"].title
    printed = capsys.readouterr().out
    assert f"| {title} | 0.650 (2 seeds) |" in printed
    assert f"| {title} (before a change) | 0.750 (2 seeds) |" in printed
    assert "before a change" in (tmp_path / "rates.svg").read_text()


def test_the_page_quotes_what_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    results = ROOT / "benchmarks" / "evidence" / "results"
    runs = str(results / "runs.jsonl")
    tables.main([runs])
    tables.main([runs, "--against", "frozen-bn-standardised"])
    rates.main([runs, str(results / "before-encoder-scales.jsonl")])
    from_scratch.main(["--out", str(results), "--table"])
    printed = set(capsys.readouterr().out.splitlines())
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").partition("## What stands where")[0]
    quoted = [line for line in page.splitlines() if line.startswith("|")]
    assert len(quoted) > 20
    assert [line for line in quoted if line not in printed] == []
