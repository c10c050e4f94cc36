"""Accuracy on corrupted images: the images, what is measured on them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ilmconvert
from ilmconvert.data.corrupted_images import corrupted_images
from ilmconvert.data.corruptions import CORRUPTIONS, corrupt
from ilmconvert.errors import DataError, EvaluationError
from ilmconvert.evaluation.corrupted import ALL, corruptions, evaluate_corrupted
from ilmconvert.evaluation.robustness import Condition
from ilmconvert.models.create import create_model
from tests.cli.commands import fails, run
from tests.helpers import randomize_norms

SIZE = 32
CONFIG = {
    "input_size": (3, SIZE, SIZE),
    "interpolation": "bilinear",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.25, 0.3),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def images(count: int = 6) -> list[tuple[Image.Image, int]]:
    pixels = np.random.default_rng(0).integers(60, 200, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return [(Image.fromarray(each), i % 3) for i, each in enumerate(pixels)]


def unit(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_images_are_corrupted_between_crop_and_normalisation() -> None:
    items = images()
    found = corrupted_images(items, CONFIG, "contrast", 4)  # type: ignore[arg-type]
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    for (x, label), (image, known) in zip((found[i] for i in range(len(items))), items, strict=True):
        torch.testing.assert_close(x, (corrupt(unit(image), "contrast", 4) - mean) / std)
        assert label == known


def test_what_is_random_belongs_to_the_image_and_the_seed() -> None:
    items = [images(1)[0]] * 2
    first, again, other = (corrupted_images(items, CONFIG, "gaussian noise", 3, seed=s) for s in (0, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_grey_images_are_refused() -> None:
    with pytest.raises(DataError, match="takes 1 channel"):
        corrupted_images(images(), {**CONFIG, "input_size": (1, SIZE, SIZE)}, "fog", 3)  # type: ignore[arg-type]


def test_names_of_corruptions() -> None:
    assert corruptions(["Gaussian-Noise", "fog", "fog"], [1, 5]) == [
        Condition("gaussian noise", 1),
        Condition("gaussian noise", 5),
        Condition("fog", 1),
        Condition("fog", 5),
    ]
    assert [c.name for c in corruptions([ALL], [3])] == list(CORRUPTIONS)
    with pytest.raises(EvaluationError, match="unknown corruption 'foggy'; did you mean 'fog'"):
        corruptions(["foggy"], [3])
    with pytest.raises(EvaluationError, match=r"there are contrast, .*, and all"):
        corruptions(["zzz"], [3])


class Brightest(nn.Module):
    """The class is the channel that is the brightest, times a sign."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * x.mean((2, 3))


def test_each_condition_is_an_evaluation_against_the_other_network() -> None:
    items = [(Image.new("RGB", (SIZE, SIZE), tuple(200 if i == k else 40 for i in range(3))), k) for k in range(3)]
    config = {**CONFIG, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    conditions = corruptions(["contrast", "gaussian-blur"], [3])
    found = dict(evaluate_corrupted(Brightest(), items, config, conditions, against=Brightest(-1.0)))  # type: ignore[arg-type]
    assert list(found) == conditions
    for each in found.values():
        assert (each.count, each.top1, each.against_top1, each.difference) == (3, 1.0, 0.0, 1.0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, (image, label) in enumerate(images()):
        folder = Path("data") / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        model = randomize_norms(create_model("test_resnet", weights="none", num_classes=3))
        ilmconvert.save(ilmconvert.convert(model), f"{name}.safetensors")
    return tmp_path


def test_the_command_measures_under_corruptions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    asked = ["evaluate", "one.safetensors", "--data", "data", "--input-size", str(SIZE)]
    more = ["--corruption", "contrast", "--corruption", "gaussian-noise", "--severity", "5"]
    shown = run(*asked, *more, "--against", "two.safetensors")
    assert shown.exit_code == 0, shown.output
    for text in ("corrupted images", "gaussian noise", "mean", "the other: two.safetensors"):
        assert text in shown.stdout
    found = json.loads(run(*asked, *more, "--json").stdout)
    assert [(row["name"], row["severity"]) for row in found["corrupted"]] == [("contrast", 5), ("gaussian noise", 5)]
    assert all(row["count"] == 6 and row["top1"] is not None for row in found["corrupted"])
    assert "corrupted" not in json.loads(run(*asked, "--json").stdout)


def test_the_command_says_what_does_not_fit(place: Path) -> None:
    asked = ["evaluate", "one.safetensors", "--data", "data"]
    assert "add --corruption NAME" in fails(*asked, "--severity", "3")
    assert "did you mean 'contrast'?" in fails(*asked, "--corruption", "contrasts")
