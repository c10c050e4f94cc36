"""The range of the restoring path: nothing inside it changes, and what lies outside is brought to its limit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ilmconvert import ConversionError, ILMNorm, convert, load, save
from ilmconvert.calibration.bound import DEFAULT_RANGE, bound, calibrate_bound
from ilmconvert.evaluation.robustness import without_bounds
from ilmconvert.export.fold import fold
from ilmconvert.finetune.anneal import restoring_parameters, without_restoring
from ilmconvert.models.create import create_model
from ilmconvert.nn.kernels import dispatch
from ilmconvert.nn.restore_range import RestoreRange, image_deviations, knee
from tests.helpers import randomize_norms

TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")
WIDE = RestoreRange(-9, 9, 9)


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
    assert bound(model, WIDE) == "1"
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", TARGETS)
def test_outside_an_instance_is_normalised_to_the_limit(to: str) -> None:
    """A tenth of the contrast: the network sees the image at the limit, whatever the groups."""
    source, x = network(), torch.randn(8, 3, 12, 12)
    source[0].bias.data.zero_()  # then the contrast of the image is that of the layer's input
    model = convert(source, to)
    bound(model, RestoreRange(-0.1, 0.1, 9))
    weak, weaker = model(x * 0.1), model(x * 0.05)
    free = source(x * 0.1) - source(x * 0.05)
    # the means of the channels, which a RestoreRange lets pass, are smaller by half, too
    assert (weak - weaker).abs().max() < 0.25 * free.abs().max()


def test_all_targets_compute_the_same_outside() -> None:
    source, x = network(), 5 + 7 * torch.randn(4, 3, 12, 12)
    outputs = []
    for to in TARGETS:
        model = convert(source, to)
        bound(model, DEFAULT_RANGE)
        outputs.append(model(x))
    assert (outputs[0] - source(x)).abs().max() > 1
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_image_in_the_range_is_what_the_source_would_have_seen(to: str, factor: float) -> None:
    """Against the definition, written as a change of the source's input to the norm."""
    torch.manual_seed(0)
    source = nn.Sequential(nn.BatchNorm2d(32)).eval()
    source[0].running_mean.normal_()
    source[0].running_var.uniform_(0.5, 2)
    source[0].weight.data.normal_()
    model = convert(source, to)
    limits = RestoreRange(-0.4, 0.3, 0.5)
    bound(model, limits)
    colour = torch.randn(4, 32, 1, 1)
    x = colour + factor * torch.randn(4, 32, 9, 9)
    var = source[0].running_var
    centre = source[0].running_mean.mean()
    ref_std = (var + source[0].eps + (source[0].running_mean - centre) ** 2).mean().sqrt()
    means = x.mean((2, 3), keepdim=True)
    contrast = 0.5 * ((x - means).square().mean((1, 2, 3), keepdim=True) + source[0].eps).log() - ref_std.log()
    scale = (knee(contrast, -0.4, 0.3) - contrast).exp()
    shrink = scale.clamp(max=1)
    radius = (means - centre).square().mean((1, 2, 3), keepdim=True).sqrt() / ref_std
    pull = knee(radius * shrink, -0.5, 0.5) / radius
    seen = scale * (x - means) + centre + pull * (means - centre)
    torch.testing.assert_close(model(x), source(seen), rtol=1e-4, atol=1e-4)
    assert (model(x) - source(x)).abs().max() > 0.1


def test_contrast_is_told_from_colour() -> None:
    """A veil of the image's own colour leaves the colour, which statistics over all channels take for contrast."""
    layer = ILMNorm(32, 8, restore=True)
    x = 3 * torch.randn(1, 32, 1, 1) + torch.randn(1, 32, 9, 9)
    mean = x.mean((2, 3), keepdim=True)
    clear, veiled = (
        image_deviations(*dispatch.moments(z, 32), layer.ref_mean, layer.ref_std, 0.0)
        for z in (x, mean + 0.1 * (x - mean))
    )
    assert (clear - veiled)[0, 0].item() == pytest.approx(math.log(10), abs=1e-3)
    assert (clear - veiled)[0, 1].item() == pytest.approx(0, abs=1e-4)


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
    layer = ILMNorm(8, 2, key_group_size=4, restore=True, restore_range=(-0.2, 0.2, 0.2)).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.rand_like(p) + 0.5)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], layer(x))


@pytest.mark.parametrize("flat", [torch.zeros(2, 8, 3, 3), torch.full((2, 8, 3, 3), 7.0), torch.ones(2, 8)])
def test_a_flat_image_gives_finite_numbers(flat: torch.Tensor) -> None:
    layer = ILMNorm(8, 2, key_group_size=4, restore=True, restore_range=(-0.2, 0.2, 0.2))
    nn.init.ones_(layer.restore_weight)
    nn.init.ones_(layer.restore_bias)
    x = flat.requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_range_is_saved_and_folded(tmp_path: Path) -> None:
    model = convert(randomize_norms(create_model("test_resnet", weights="none")))
    name = bound(model, DEFAULT_RANGE)
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    x = 4 * torch.randn(2, 3, 64, 64) + 2
    assert loaded.get_submodule(name).restore_range == DEFAULT_RANGE
    assert type(loaded.get_submodule(name).restore_range) is RestoreRange
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(fold(loaded)(x), model(x), rtol=1e-4, atol=1e-4)
    free = without_bounds(loaded)
    assert (free(x) - model(x)).abs().max() > 1e-3


def test_calibration_takes_the_range_of_the_images() -> None:
    source = network()
    model = convert(source, "ilm_gn")
    batches = [(0.7 + 0.1 * i) * torch.randn(8, 3, 12, 12) for i in range(6)]
    assert calibrate_bound(model, batches, quantile=0.0) == "1"
    limits = model[1].restore_range
    features = source[0](torch.cat(batches))
    spread = features.var((2, 3), correction=0).mean(1)
    whole = model[1].ref_std.square() + (model[1].ref_mean - model[1].ref_mean.mean()).square()
    contrast = 0.5 * (spread / whole.mean()).log()
    assert limits.contrast_low == pytest.approx(contrast.min().item(), abs=1e-4)
    assert limits.contrast_high == pytest.approx(contrast.max().item(), abs=1e-4)
    for batch in batches:
        torch.testing.assert_close(model(batch), source(batch), rtol=1e-4, atol=1e-4)
    calibrate_bound(model, batches, quantile=0.25)
    assert model[1].restore_range.contrast_low > limits.contrast_low
    assert model[1].restore_range.contrast_high == limits.contrast_high
    assert model[1].restore_range.mean_radius < limits.mean_radius


def test_calibration_without_images_takes_the_default() -> None:
    model = convert(network())
    assert calibrate_bound(model) == "1"
    assert model[1].restore_range == DEFAULT_RANGE


def test_without_images_a_network_of_uncentred_ones_is_refused() -> None:
    model = convert(network())
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}
    assert calibrate_bound(model) == "1"
    model.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    with pytest.raises(ConversionError, match="aren't centred"):
        calibrate_bound(model)
    assert calibrate_bound(model, [torch.randn(8, 3, 12, 12)]) == "1"


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(ConversionError, match="no restoring path"):
        bound(convert(network(), init="moments"))
    with pytest.raises(ConversionError, match="no restoring path"):
        calibrate_bound(convert(network(), init="moments"))
    with pytest.raises(ConversionError, match="at least two images"):
        calibrate_bound(convert(network()), [])
    with pytest.raises(ConversionError, match="same contrast"):
        calibrate_bound(convert(network()), [torch.ones(4, 3, 12, 12)])
    for limits in ((0.5, -0.5, 1), (-0.5, 0.5, 0)):
        with pytest.raises(ValueError, match="needs"):
            bound(convert(network()), limits)
    with pytest.raises(ValueError, match="three numbers"):
        bound(convert(network()), (1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ValueError, match="needs restore=True"):
        ILMNorm(8, 2, key_group_size=4, restore_range=(-1, 1, 1))
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
