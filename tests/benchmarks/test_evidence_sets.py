"""The evidence runner: its sets and their shifts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.evidence.arms import FROZEN, Arm
from benchmarks.evidence.augmented import augmented
from benchmarks.evidence.cifar import facts, read_cifar10
from benchmarks.evidence.clipart import SUBJECTS, drawings
from benchmarks.evidence.experiment import Experiment
from benchmarks.evidence.images import Images, draw
from benchmarks.evidence.mednist import KINDS
from benchmarks.evidence.paired import COLUMNS
from benchmarks.evidence.runs import RunFile
from benchmarks.evidence.sets import load_splits
from benchmarks.evidence.shifts import SEVERITIES, SHIFTS, shift, shifted_sets
from benchmarks.evidence.train import Settings, Trained
from ilmconvert.errors import ILMConvertError
from tests.benchmarks.evidence_jobs import small_images, small_network, write_cifar10_package


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
    monkeypatch.setattr("benchmarks.evidence.clipart.SUBJECTS", ("animals", "food"))
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


def test_scans_are_split_by_content_at_their_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        (tmp_path / kind).mkdir(parents=True)
        for i in range(12):
            scan = Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8))
            scan.save(tmp_path / kind / f"{i:06}.jpeg")
    splits = load_splits("mednist", 64, tmp_path / "cache", tmp_path)
    parts = (splits.train, splits.val, splits.test)
    assert sum(map(len, parts)) == 72
    assert splits.num_classes == len({label for part in parts for label in part.labels.tolist()}) == 6
    with Image.open(tmp_path / KINDS[0] / "000000.jpeg") as scan:
        grey = torch.tensor(np.asarray(scan)).expand(3, -1, -1)
    assert any(torch.equal(pixels, grey) for part in parts for pixels in part.pixels)


@pytest.mark.parametrize(("name", "classes"), [("clipart", SUBJECTS), ("mednist", KINDS)])
def test_folders_that_are_missing_or_empty_are_named(name: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    for folder in classes[1:]:
        (tmp_path / folder).mkdir()
    with pytest.raises(ILMConvertError, match=f"lacks the folders {classes[0]}; .* --data-root"):
        load_splits(name, 32, tmp_path / "cache", tmp_path)
    (tmp_path / classes[0]).mkdir()
    with pytest.raises(ILMConvertError, match=r"has 0 images, too few to be split; .* --data-root"):
        load_splits(name, 32, tmp_path / "cache", tmp_path)
    assert not list((tmp_path / "cache").iterdir())


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar-10-negatives", lambda pixels: 255 - pixels),
        ("cifar-10-low-light", lambda pixels: (pixels.float() / 255 * 0.1 * 255).round().to(torch.uint8)),
    ],
)
def test_a_domain_of_its_own_has_every_image_in_one_light(
    name: str, expected: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    write_cifar10_package(tmp_path, rows=12)
    plain, domain = (load_splits(each, 32, tmp_path / "cache", tmp_path) for each in ("cifar-10", name))
    for part in ("train", "val", "test"):
        before, after = getattr(plain, part), getattr(domain, part)
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(after.pixels, expected(before.pixels))


def test_cifar_10_is_read_from_the_pictures_of_a_package(tmp_path: Path) -> None:
    test = write_cifar10_package(tmp_path, rows=12)
    splits = load_splits("cifar-10", 32, tmp_path / "cache", tmp_path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [50, 10, 12]
    assert torch.equal(splits.test.pixels, torch.from_numpy(test).permute(0, 3, 1, 2))
    assert splits.val.labels.tolist() == [i % 10 for i in range(50, 60)]
    assert facts(tmp_path).startswith("60 images, of each class [6]; means 0.5")


def test_cifar_10_is_read_from_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    known = SimpleNamespace(data=pixels, targets=[3, 8, 8, 0, 6, 6])
    monkeypatch.setattr("benchmarks.evidence.cifar.CIFAR10", lambda root, train: known)
    read, labels = read_cifar10(tmp_path, train=True)
    assert torch.equal(read, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert labels.tolist() == known.targets


def test_views_of_an_image_differ_and_are_the_same_for_the_same_seed() -> None:
    images = small_images(8, size=32)
    random.seed(5)
    np.random.seed(5)
    usual = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    first, again, other = (augmented(images, 2, seed) for seed in (0, 0, 1))
    assert (random.random(), np.random.rand()) == usual  # nobody else's draws are moved
    assert torch.equal(first.pixels, again.pixels)
    assert first.labels.tolist() == [*images.labels.tolist(), *images.labels.tolist()]
    for a, b in ((first.pixels[:8], images.pixels), (first.pixels[8:], first.pixels[:8]), (first.pixels, other.pixels)):
        assert (a != b).flatten(1).any(1).double().mean() > 0.5


def test_each_epoch_sees_another_view(fashion_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def train(arm: Arm, settings: Settings, source: nn.Module, images: Images, *others: int, seed: int) -> Trained:
        seen[image_set] = images, others[1]
        return Trained(source, source, prepare, 1.0, 1.0)

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float()

    monkeypatch.setattr("benchmarks.evidence.experiment.train", train)
    for image_set in ("fashion-mnist", "fashion-mnist-augmented"):
        runs = RunFile(tmp_path / "runs.jsonl")
        experiment = Experiment(small_network(), image_set, 32, "short", runs, tmp_path / "cache", fashion_root)
        next(experiment.finals({FROZEN: Settings(0.005)}))
    (plain, epochs), (views, once) = seen.values()
    assert (len(plain), epochs, len(views), once) == (50, 3, 150, 1)
    assert views.labels.tolist() == 3 * plain.labels.tolist()
    assert not torch.equal(views.pixels[:50], plain.pixels)


def test_missing_files_and_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ILMConvertError, match="use one of fashion-mnist, clipart"):
        load_splits("letters", 28, tmp_path)
    with pytest.raises(ILMConvertError, match="--data-root"):
        load_splits("fashion-mnist", 28, tmp_path, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    for name in ("fashion-mnist", "cifar-10"):
        with pytest.raises(ILMConvertError, match="--data-root"):
            load_splits(name, 28, tmp_path, tmp_path / "empty")
    write_cifar10_package(tmp_path, rows=2)
    for file, damaged in (("test_lables.json", b"[3, "), ("test_lables.json", b"[3]"), ("data_batch_5.png", b"")):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(ILMConvertError, match="--data-root"):
            load_splits("cifar-10", 32, tmp_path / "cache", tmp_path)
        (tmp_path / file).write_bytes(whole)


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
