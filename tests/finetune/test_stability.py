"""Training at batch size 2 and twice the recommended rate: every start learns, no run falls back to chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ilmconvert import convert
from ilmconvert.data.open_data import Data
from ilmconvert.finetune import Recipe, finetune, get_recipe
from ilmconvert.finetune.optimizer import Schedule, make_optimizer, parameter_groups
from ilmconvert.nn import ILMNorm
from ilmconvert.testing import randomize_norms

RECOMMENDED_RATE = 0.004  # docs/finetune.md, for batch size 2
CLASSES, SIZE = 3, 32
FIRST = {"to": "ilm_in", "init": "moments", "first_only": True}


def colours(count: int, seed: int) -> list[tuple[Tensor, int]]:
    """Noise in which one channel is brighter than the others; its number is the class."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        image = torch.randn(3, SIZE, SIZE, generator=generator)
        image[number % CLASSES] += 1.0
        found.append((image, number % CLASSES))
    return found


def stripes(count: int, seed: int) -> list[tuple[Tensor, int]]:
    """Noise with stripes along rows, columns or diagonals: what an ILM-IN, which takes means away, still sees."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = [torch.sin(place * torch.pi / 4) for place in (rows, columns, rows + columns)]
    return [
        (torch.randn(3, SIZE, SIZE, generator=generator) + 2 * waves[i % CLASSES], i % CLASSES) for i in range(count)
    ]


def source() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return randomize_norms(network).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ({"restore_bound": 2.0}, {"to": "ilm_ln", "restore_bound": 2.0}, {"to": "ilm_in"}, FIRST)
        ),
    ],
)
def test_twice_the_recommended_rate_trains(tmp_path: Path, settings: dict[str, Any]) -> None:
    images = stripes if settings == FIRST else colours
    data = Data(images(60, 0), images(60, 1), num_classes=CLASSES)  # type: ignore[arg-type]
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first-norm", "anneal-part"])
def test_recipes_with_adamw_train_at_twice_their_rate(tmp_path: Path, name: str) -> None:
    data = Data(stripes(60, 0), stripes(60, 1), num_classes=CLASSES)  # type: ignore[arg-type]
    recipe = get_recipe(name, epochs=8, batch_size=2, distill=0.0, workers=0)  # the teacher knows nothing
    assert recipe.lr is not None
    result = finetune(source(), data, recipe, output=tmp_path / "run", lr=2 * recipe.lr)
    assert result.metrics["val_top1"] > 0.9
    assert result.metrics["train_loss"] < 0.5


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_step_moves_encoders_before_large_variances_no_further_than_others(opt: str) -> None:
    """Relative to their size; at the common rate a variance of 10,000 makes it five thousand times as far and more."""
    recipe = Recipe(opt=opt, lr=0.01, warmup_epochs=0.0, weight_decay=0.0)
    moved = []
    for deviation in (1.0, 100.0):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(32)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.constant_(norm.running_mean, 0.1 * deviation)
        nn.init.constant_(norm.running_var, deviation**2)
        network = convert(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)).eval())
        layer = network.get_submodule("0")
        assert isinstance(layer, ILMNorm)
        nn.init.constant_(layer.weight_decoder, 0.1)
        nn.init.constant_(layer.bias_decoder, 0.1)
        optimizer = make_optimizer(parameter_groups(network, recipe), recipe)
        Schedule(optimizer, recipe, 1).apply(0)
        before = layer.encoder.detach().clone()
        nn.functional.cross_entropy(
            network(torch.randn(4, 32, 8, 8) * deviation), torch.tensor([0, 1, 0, 1])
        ).backward()
        optimizer.step()
        moved.append(((layer.encoder - before).norm() / before.norm()).item())
    assert 0 < moved[1] < 20 * moved[0]
