"""The corruptions: each grows with its severity, is repeatable and does what its definition says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ilmconvert.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, plasma


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Clouds in three colours: content of every scale, from 0.1 to 0.9."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.stack([plasma((96, 80), 1.6, generator) for _ in range(3)])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_range_shape_and_growth(image: Tensor, name: str) -> None:
    errors = []
    for severity in SEVERITIES:
        found = [corrupt(image, name, severity, seed=seed) for seed in range(6)]
        assert all(c.shape == image.shape and c.dtype == image.dtype for c in found)
        assert all(c.min() >= 0 and c.max() <= 1 for c in found)
        errors.append(sum((c - image).square().mean().item() for c in found))
    assert errors[0] > 0
    # The clouds change with the severity of fog; see the next test.
    assert name == "fog" or all(a < b for a, b in pairwise(errors))


def test_fog_leaves_less_of_the_image(image: Tensor) -> None:
    other = image.flip(2)
    left = [(corrupt(image, "fog", s) - corrupt(other, "fog", s)).std() / (image - other).std() for s in SEVERITIES]
    density = torch.tensor([1.5, 2.0, 2.5, 2.5, 3.0])
    torch.testing.assert_close(torch.stack(left), image.max() / (image.max() + density))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_repeats_whatever_the_global_generator(image: Tensor, name: str) -> None:
    torch.manual_seed(1)
    first, state = corrupt(image, name, 3, seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, corrupt(image, name, 3, seed=7))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


RANDOM = (
    "color cast",
    "fog",
    "uneven light",
    "local contrast",
    "gaussian noise",
    "shot noise",
    "motion blur",
    "mixture",
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seed_matters_where_chance_has_a_part(image: Tensor, name: str) -> None:
    found = [corrupt(image, name, 3, seed=seed) for seed in range(4)]
    same = all(torch.equal(found[0], other) for other in found[1:])
    assert same == (name not in RANDOM)


def test_contrast_scales_about_the_mean(image: Tensor) -> None:
    found = corrupt(image, "contrast", 4)
    torch.testing.assert_close(found.mean((1, 2)), image.mean((1, 2)))
    torch.testing.assert_close(found.std((1, 2)), 0.1 * image.std((1, 2)))


def test_brightness_keeps_hue_and_saturation(image: Tensor) -> None:
    found = corrupt(image, "brightness", 1)
    inside = image.amax(0) < 0.89
    torch.testing.assert_close((found.amax(0) - image.amax(0))[inside], torch.full_like(found[0], 0.1)[inside])
    torch.testing.assert_close((found[0] * image[1])[inside], (found[1] * image[0])[inside])
    assert corrupt(torch.zeros(3, 8, 8), "brightness", 2).allclose(torch.tensor(0.2))


def test_noise_has_its_variance() -> None:
    grey = torch.full((3, 128, 128), 0.5)
    assert corrupt(grey, "gaussian noise", 1).std().item() == pytest.approx(0.08, rel=0.02)
    assert corrupt(grey, "shot noise", 1).std().item() == pytest.approx((0.5 / 60) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name.endswith("blur")])
def test_blur_keeps_a_flat_image_and_the_light_of_a_point(name: str) -> None:
    flat = torch.full((3, 96, 96), 0.3)
    torch.testing.assert_close(corrupt(flat, name, 3), flat)
    point = torch.zeros(3, 129, 129)
    point[:, 64, 64] = 1
    found = corrupt(point, name, 3)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
    assert found.max() < 0.2


def test_uneven_light_reaches_from_all_to_what_is_left() -> None:
    found = corrupt(torch.ones(3, 64, 48), "uneven light", 1)
    assert found.max() == 1
    assert found.min() == pytest.approx(0.5)


def test_keeps_device_and_type(image: Tensor) -> None:
    assert corrupt(image.double(), "fog", 1).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 8, 8), "rain", 1), "unknown corruption 'rain'; use one of contrast"),
        ((torch.zeros(3, 8, 8), "fog", 6), "severity=6 must be from 1 to 5"),
        ((torch.zeros(1, 3, 8, 8), "fog", 1), r"shape \(3, H, W\), got \(1, 3, 8, 8\)"),
    ],
)
def test_wrong_arguments(arguments: tuple[Tensor, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(*arguments)
