"""timm's augmentation policies with the Pillow that is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ilmconvert.data.dataset import seeded
from ilmconvert.data.transforms import create_transform

POLICIES = (
    "rand-m10-n9-p1-inc1",
    "rand-m0-n9-p1",
    "rand-m20-n9-p1-inc1-mmax20",
    "augmix-m10-w9",
    "v0",
    "original",
    "3a",
)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_run_at_every_strength(policy: str) -> None:
    transform = create_transform(input_size=32, is_training=True, auto_augment=policy)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    with seeded(0):
        found = [transform(image) for _ in range(40)]
    assert all(x.shape == (3, 32, 32) and x.isfinite().all() for x in found)
    assert not all(torch.equal(x, found[0]) for x in found)


def test_posterizing_keeps_a_bit() -> None:
    policy = create_transform(input_size=8, is_training=True, auto_augment="rand-m10-p1-inc1").transforms[2]  # type: ignore[attr-defined]
    posterize = next(op for op in policy.ops if op.name == "PosterizeIncreasing")
    found = np.asarray(posterize(Image.new("RGB", (2, 2), (200, 100, 255))))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [[128, 0, 128]]
