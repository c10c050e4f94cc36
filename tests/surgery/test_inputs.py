"""Inputs that a norm and its conversion could take for different things: one instance, values that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ilmconvert
from ilmconvert.export.fold import fold
from tests.helpers import randomize_norms, relative_error, source_network

KINDS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Derived(nn.InstanceNorm2d):
    """A subclass that nobody registered."""


def cases() -> list[tuple[type[nn.Module], int]]:
    return [*((kind, dims) for dims, kind in KINDS.items()), (Derived, 2)]


@pytest.mark.parametrize("tracking", [False, True])
@pytest.mark.parametrize(("kind", "dims"), cases())
def test_a_single_instance_is_one_whatever_its_sizes(
    kind: type[nn.Module], dims: int, tracking: bool, tmp_path: Path
) -> None:
    build = lambda: nn.Sequential(kind(6, affine=True, track_running_stats=tracking))  # noqa: E731
    source = randomize_norms(build()).eval()
    converted = ilmconvert.convert(source)
    assert converted[0].input_dims == dims + 2
    ilmconvert.save(converted, tmp_path / "layer.safetensors")
    loaded = ilmconvert.load(tmp_path / "layer.safetensors", into=build()).eval()
    for model in (converted, loaded, fold(converted)):
        for shape in ((6, *[6] * dims), (6, *[5] * dims), (1, 6, *[6] * dims), (3, 6, *[4] * dims)):
            x = torch.randn(shape) + 1
            assert relative_error(model(x), source(x)) <= 1e-5, shape
        with pytest.raises((ValueError, RuntimeError)):
            converted(torch.randn(2, 3, 6, *[4] * dims))
        with pytest.raises((ValueError, RuntimeError)):
            converted(torch.randn(5, *[6] * dims))


def test_gradients_of_a_single_instance() -> None:
    layer = ilmconvert.convert(randomize_norms(nn.InstanceNorm2d(6, affine=True))).double()
    x = torch.randn(6, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_one_odd_pixel_spoils_its_image_until_it_is_replaced(value: float) -> None:
    """What docs/limits.md says, and the cure that it names."""
    source = source_network(features_only=True)
    converted = ilmconvert.convert(source)
    x = torch.randn(2, 3, 64, 64)
    x[0, 0, 5, 5] = value
    with torch.no_grad():
        spoilt, wanted = converted(x)[0], source(x)[0]
        assert not spoilt[0].isfinite().any() or relative_error(spoilt[0], wanted[0]) > 1e-2
        assert relative_error(spoilt[1], wanted[1]) <= 1e-5
        cured = x.nan_to_num(0, 0, 0).clamp(-10, 10)
        assert relative_error(converted(cured)[0], source(cured)[0]) <= 1e-5
        folded = fold(converted)(x)[0]
        assert folded.isfinite().eq(wanted.isfinite()).all()


def test_a_large_finite_pixel_spoils_no_more_than_in_the_source() -> None:
    source = source_network(features_only=True)
    converted = ilmconvert.convert(source)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        clean = source(x)[0]
        x[0, 0, 5, 5] = 1e8
        for model in (source, converted):
            same = (model(x)[0] - clean).abs() <= 1e-4 * clean.abs().max()
            assert same.float().mean() > 0.95
