"""Training at batch size 2 and twice the recommended rate: every start learns, no run falls back to chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ilmconvert.data.open_data import Data
from ilmconvert.finetune import finetune
from ilmconvert.testing import randomize_norms

RECOMMENDED_RATE = 0.004  # docs/finetune.md, for batch size 2
CLASSES, SIZE = 3, 32


def colours(count: int, seed: int) -> list[tuple[Tensor, int]]:
    """Noise in which one channel is brighter than the others; its number is the class."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        image = torch.randn(3, SIZE, SIZE, generator=generator)
        image[number % CLASSES] += 1.0
        found.append((image, number % CLASSES))
    return found


def source() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return randomize_norms(network).eval()


@pytest.mark.parametrize(
    "settings", [{}, {"restore_bound": 2.0}, {"to": "ilm_ln", "restore_bound": 2.0}, {"to": "ilm_in"}]
)
def test_twice_the_recommended_rate_trains(tmp_path: Path, settings: dict[str, Any]) -> None:
    data = Data(colours(60, 0), colours(60, 1), num_classes=CLASSES)  # type: ignore[arg-type]
    result = finetune(
        source(),
        data,
        "full",
        output=tmp_path / "run",
        epochs=3,
        batch_size=2,
        lr=2 * RECOMMENDED_RATE,
        workers=0,
        **settings,
    )
    assert result.metrics["val_top1"] > 0.9
    assert result.metrics["train_loss"] < 0.5
