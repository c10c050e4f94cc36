"""Networks side by side under corruption: what counts as agreement, its errors, and the baseline."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ilmconvert.evaluation.robustness import (
    AFFINE,
    CLEAN,
    Agreement,
    Condition,
    StandardizedInput,
    all_conditions,
    compare_networks,
    corrupted,
)

IMAGES = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(12)]


class Brightness(nn.Module):
    """Two classes: darker or brighter than ``threshold`` on the mean."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack((self.threshold - mean, mean - self.threshold), 1)


def normalize(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.5


def run(networks: dict[str, nn.Module], *conditions: Condition) -> dict[tuple[str, str], Agreement]:
    found = compare_networks(networks, IMAGES, normalize, conditions)
    return {(a.network, a.condition.name): a for a in found}


def test_reference_is_the_source_on_clean_images() -> None:
    middle = normalize(torch.stack(IMAGES)).mean((1, 2, 3)).median().item() + 1e-4
    found = run({"source": Brightness(middle), "never": Brightness(99)}, Condition(CLEAN), Condition("brightness +1"))
    assert found["source", CLEAN].agreement == 1
    assert found["source", CLEAN].error == 0
    bright = found["source", "brightness +1"]
    assert bright.agreement == 0.5  # all are called bright, as half of the clean images are
    assert bright.error == pytest.approx(math.sqrt(12 * 0.25 / 11 / 12))
    never = found["never", "brightness +1"]
    assert (never.agreement, never.gain) == (0.5, 0)
    assert never.gain_error == pytest.approx(math.sqrt(12 / 11 / 12))  # no image in common
    assert found["never", CLEAN].gain == -0.5


def test_standardized_input_undoes_every_affine_change() -> None:
    network = StandardizedInput(
        nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 784, 5)).eval()
    )
    clean = network(corrupted(IMAGES, Condition(CLEAN), normalize))
    for name in AFFINE:
        torch.testing.assert_close(network(corrupted(IMAGES, Condition(name), normalize)), clean, atol=1e-5, rtol=1e-5)


def test_each_image_has_noise_of_its_own() -> None:
    grey = [torch.full((3, 16, 16), 0.5)] * 2
    batch = corrupted(grey, Condition("gaussian noise", 1), normalize)
    assert not torch.equal(batch[0], batch[1])


def test_all_conditions_come_out_in_order() -> None:
    asked = [Condition(CLEAN), Condition("contrast", 2), Condition("contrast x4")]
    found = compare_networks({"a": Brightness(0), "b": Brightness(1)}, IMAGES, normalize, asked)
    assert [(a.condition, a.network) for a in found] == [(c, n) for c in asked for n in "ab"]
    assert len({(c.name, c.severity) for c in all_conditions()}) == len(all_conditions())


def test_one_image_has_no_error_bar() -> None:
    (only,) = compare_networks({"a": Brightness(0)}, IMAGES[:1], normalize, [Condition(CLEAN)])
    assert only.error == math.inf


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one image and one network"):
        list(compare_networks({"a": Brightness(0)}, [], normalize))
    with pytest.raises(ValueError, match=r"unknown change .fog. without a severity; use clean or one of contrast"):
        corrupted(IMAGES, Condition("fog"), normalize)
