"""A small network, a few images and made-up runs for the tests of the evidence runner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.evidence.arms import ARMS, WARM
from benchmarks.evidence.images import Images
from benchmarks.evidence.paired import COLUMNS
from benchmarks.evidence.runs import FINAL, Run
from ilmconvert.testing import randomize_norms

_NOT_ELSEWHERE = ("ilm-in-first" + WARM, "ilm-gn-wide-adamw-fast", "ilm-gn-decayed-adamw-fast")
#: All arms, of those with a warm-up one, and none that only has other rates.
DIFFERENT_ARMS = [name for name in ARMS if name in _NOT_ELSEWHERE or not name.endswith((WARM, "-fast"))]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    # A bias before an instance norm has no gradient but rounding, of which AdamW makes whole steps.
    layers = (
        nn.Conv2d(3, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.BatchNorm2d(16),
    )
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


def write_cifar10_package(folder: Path, rows: int) -> np.ndarray:
    """A small package of CIFAR-10's pictures; the pixels of its test images."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (rows, 32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels.reshape(rows, 1024, 3)).save(folder / f"{name}.png")
    for name, count in (("train", 5 * rows), ("test", rows)):
        (folder / f"{name}_lables.json").write_text(json.dumps([i % 10 for i in range(count)]))
    return pixels
