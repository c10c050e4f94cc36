"""New reference values of the restoring path: nothing that a network computes changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ilmconvert import ILMNorm, convert, load
from ilmconvert.calibration import CalibrationError, update_references
from ilmconvert.finetune import get_recipe
from ilmconvert.finetune.engine import take_references
from ilmconvert.finetune.networks import start
from tests.finetune.finetune_jobs import bars, network, run
from tests.helpers import randomize_norms, relative_error


def images(count: int = 6) -> Tensor:
    """Far from what the running statistics say."""
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 0.2 + 2


def restoring(model: nn.Module) -> dict[str, ILMNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm)}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("to", ["ilm_gn", "ilm_ln", "ilm_in"])
def test_every_output_stays(name: str, to: str) -> None:
    torch.manual_seed(0)
    model = convert(randomize_norms(timm.create_model(name), scale=0.5).eval(), to)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    x, other = images(), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected = model(x), model(other)
        moved = update_references(model, [x[:3], (x[3:], torch.zeros(3))])
        assert set(moved) == set(restoring(model))
        assert any(not torch.allclose(model.state_dict()[f"{n}.ref_mean"], before[f"{n}.ref_mean"]) for n in moved)
        for inputs, y in zip((x, other), expected, strict=True):
            assert relative_error(model(inputs), y) < 2e-5


@pytest.mark.parametrize("correction", [0, 1])
def test_the_references_are_the_averages_of_the_images(correction: int) -> None:
    layer = ILMNorm(8, 2, key_group_size=4, restore=True, correction=correction)
    x = torch.randn(5, 8, 3, 3)
    update_references(nn.Sequential(layer), [x[:2], x[2:]])
    grouped = x.view(5, 2, -1)
    assert layer.ref_mean is not None
    assert layer.ref_std is not None
    torch.testing.assert_close(layer.ref_mean.data, grouped.mean(2).mean(0))
    std = (grouped.var(2, correction=correction) + layer.eps).sqrt().mean(0)
    torch.testing.assert_close(layer.ref_std.data, std)


def test_an_average_instance_needs_no_path() -> None:
    """What is left without the path is nearer to the source on the images that the references came from."""
    torch.manual_seed(0)
    source = randomize_norms(timm.create_model("test_resnet"), scale=0.5).eval()
    x = images(16)
    errors = []
    with torch.no_grad():
        for moved in (False, True):
            model = convert(source, "ilm_ln")
            if moved:
                update_references(model, [x])
            for layer in restoring(model).values():
                for t in (layer.restore_weight, layer.restore_bias):
                    assert t is not None
                    t.zero_()
            errors.append(relative_error(model(x), source(x)))
    assert errors[1] < errors[0] / 2


def test_limits_keep_what_they_are_relative_to() -> None:
    bounded = ILMNorm(8, 2, key_group_size=4, restore=True, restore_bound=2.0)
    pure = ILMNorm(8, 2, key_group_size=4)
    free = ILMNorm(8, 2, key_group_size=4, restore=True)
    model = nn.Sequential(bounded, pure, free)
    assert update_references(model, [torch.randn(4, 8, 3, 3) + 1]) == ["2"]
    assert not bounded.ref_mean.any()  # type: ignore[union-attr]


def test_damaged_images_change_nothing() -> None:
    layer = ILMNorm(8, 2, key_group_size=4, restore=True)
    with pytest.raises(CalibrationError, match="aren't finite"):
        update_references(nn.Sequential(layer), [torch.full((2, 8, 3, 3), float("nan"))])
    assert not layer.ref_mean.any()  # type: ignore[union-attr]
    with pytest.raises(CalibrationError, match="no batches"):
        update_references(nn.Sequential(layer), [])


def test_a_run_takes_them_from_its_images(tmp_path: Path) -> None:
    """The same ones each time, and the first validation is still the source's."""
    model = network(num_classes=4)
    settings = {"model": model, "num_classes": None, "recipe": "full", "epochs": 1, "lr": 1e-9}
    results = [run(tmp_path / str(n), reference_images=n, **settings) for n in (0, 8)]
    before = [r.summary["before"]["loss"] for r in results]
    assert before[0] == pytest.approx(before[1], rel=1e-5)
    states = [load(r.last).state_dict() for r in results]
    key = next(k for k in states[0] if k.endswith("ref_mean"))
    assert not torch.allclose(states[0][key], states[1][key])
    recipe = get_recipe("full", reference_images=8, input_size=32)
    first = [start(model, recipe).network for _ in range(2)]
    for each in first:
        take_references(each, _tensors(), recipe)
    assert torch.equal(first[0].state_dict()[key], first[1].state_dict()[key])


def _tensors():  # type: ignore[no-untyped-def]
    from ilmconvert.finetune.loaders import with_transforms

    return with_transforms(bars(), get_recipe("full", input_size=32), network())
