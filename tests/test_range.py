"""The range of the restoring path: nothing inside it changes, and what lies outside is brought to its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ilmconvert import ConversionError, ILMNorm, convert, load, save
from ilmconvert.finetune.anneal import restoring_parameters, without_restoring
from ilmconvert.models import create_model
from ilmconvert.nn.range import Range, knee, whole_deviations
from ilmconvert.robustness.bound import DEFAULT_RANGE, LEAST_MEAN, bound, calibrate_bound
from ilmconvert.robustness.sources import without_bounds
from ilmconvert.surgery.fold import fold
from tests.helpers import randomize_norms

TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.BatchNorm2d(16)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5)).eval()
    x = torch.randn(64, 3, 12, 12)
    model(x)
    with torch.no_grad():
        model[1].running_mean.copy_(model[0](x).mean((0, 2, 3)))
        model[1].running_var.copy_(model[0](x).var((0, 2, 3)))
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.normal_()
        model[4].running_mean.normal_()
    return model


@pytest.mark.parametrize("to", TARGETS)
def test_inside_the_range_nothing_changes(to: str) -> None:
    source, x = network(), torch.randn(8, 3, 12, 12)
    model = convert(source, to)
    assert bound(model, Range(-9, 9, -9, 9)) == "1"
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", TARGETS)
def test_outside_an_instance_is_normalised_to_the_limit(to: str) -> None:
    """A tenth of the contrast: the network sees the picture at the limit, whatever the groups."""
    source, x = network(), torch.randn(8, 3, 12, 12)
    source[0].bias.data.zero_()  # then the contrast of the picture is that of the layer's input
    model = convert(source, to)
    bound(model, Range(-0.1, 0.1, -9, 9))
    weak, weaker = model(x * 0.1), model(x * 0.05)
    free = source(x * 0.1) - source(x * 0.05)
    assert (weak - weaker).abs().max() < 0.15 * free.abs().max()


def test_all_targets_compute_the_same_outside() -> None:
    source, x = network(), 5 + 7 * torch.randn(4, 3, 12, 12)
    outputs = []
    for to in TARGETS:
        model = convert(source, to)
        bound(model)
        outputs.append(model(x))
    assert (outputs[0] - source(x)).abs().max() > 1
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-4)


def test_knee_is_smooth_and_keeps_the_order() -> None:
    z = torch.linspace(-3, 3, 6001, dtype=torch.float64).requires_grad_()
    y = knee(z, -0.5, 1.0)
    assert (y.diff() >= 0).all()
    assert y.min() >= -0.5 - 0.075
    assert y.max() <= 1.0 + 0.075
    (slope,) = torch.autograd.grad(y.sum(), z)
    assert slope.diff().abs().max() < 0.02
    inside = (z > -0.5) & (z < 1.0)
    torch.testing.assert_close(y[inside], z[inside])


def test_gradients_and_compilers_see_the_range() -> None:
    layer = ILMNorm(8, 2, key_group_size=4, restore=True, restore_range=(-0.2, 0.2, -0.2, 0.2)).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.rand_like(p) + 0.5)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], layer(x))


def test_the_range_is_saved_and_folded(tmp_path: Path) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none")))
    name = bound(model)
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    x = 4 * torch.randn(2, 3, 64, 64) + 2
    assert loaded.get_submodule(name).restore_range == DEFAULT_RANGE
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(fold(loaded)(x), model(x), rtol=1e-4, atol=1e-4)
    free = without_bounds(loaded)
    assert (free(x) - model(x)).abs().max() > 1e-3


def test_calibration_covers_what_was_seen() -> None:
    source = network()
    model = convert(source, "ilm_gn")
    batches = [(0.7 + 0.1 * i) * torch.randn(8, 3, 12, 12) for i in range(6)]
    assert calibrate_bound(model, batches, quantile=0.0) == "1"
    limits = model[1].restore_range
    seen = torch.cat([whole_deviations(source[0](b), model[1].ref_mean, model[1].ref_std, 1e-5) for b in batches])
    assert limits.std_low == pytest.approx(seen[:, 0].min().item(), abs=1e-4)
    assert limits.std_high == pytest.approx(seen[:, 0].max().item(), abs=1e-4)
    assert limits.mean_low <= -LEAST_MEAN
    assert limits.mean_high >= LEAST_MEAN
    for batch in batches:
        torch.testing.assert_close(model(batch), source(batch), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(ConversionError, match="no restoring path"):
        bound(convert(network(), init="moments"))
    with pytest.raises(ConversionError, match="at least two pictures"):
        calibrate_bound(convert(network()), [])
    with pytest.raises(ValueError, match="below its upper"):
        bound(convert(network()), Range(0.5, -0.5, 0, 1))
    with pytest.raises(ValueError, match="needs restore=True"):
        ILMNorm(8, 2, key_group_size=4, restore_range=(-1, 1, -1, 1))
    with pytest.raises(ValueError, match="quantile"):
        calibrate_bound(convert(network()), [], quantile=0.5)


def test_a_range_goes_with_the_path_that_was_annealed() -> None:
    model = convert(randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))), "ilm_ln")
    bound(model)
    for parameter in restoring_parameters(model):
        parameter.data.zero_()
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    torch.testing.assert_close(without_restoring(model)(x), wanted)
    assert model[1].restore_range is None
