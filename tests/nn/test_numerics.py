"""The bound of docs/numerics.md, held against float64 where running statistics, inputs and types are extreme."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.numerics import (
    CASES,
    TARGETS,
    TYPES,
    Types,
    batch_norm,
    bound,
    cases,
    errors,
    every,
    sample,
    worst_channels,
)
from ilmconvert import ConversionError, ILMNorm, convert

UNITS = 8.0  # of rounding
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*never trained", "ignore::ilmconvert.errors.PrecisionLost")
@pytest.mark.parametrize(
    ("types", "name"), [(types, name) for types in TYPES for name in cases(types)], ids=lambda value: str(value)
)
def test_the_error_is_within_the_bound(types: Types, name: str) -> None:
    for to in TARGETS:
        for memory_format in FORMATS:
            found = errors(cases(types)[name], types, to, memory_format)
            assert found.of_bound < UNITS, (to, memory_format, found)


def test_the_bound_is_tight() -> None:
    """An error of one part in a million, in float32, is beyond it."""
    source = batch_norm(CASES["as usual"], torch.float32)
    wrong = convert(source)
    wrong.weight *= 1 + 1e-6
    x = sample(source, torch.float32)

    error = (wrong(x).double() - source.double()(x.double())).abs()
    assert (error / bound(source, wrong, x)).max() > UNITS * torch.finfo(torch.float32).eps / 2


@pytest.mark.filterwarnings("ignore:.*never trained", "ignore::ilmconvert.errors.PrecisionLost")
@pytest.mark.parametrize("name", CASES)
def test_larger_groups_cost_no_channel_a_digit_in_float32(name: str) -> None:
    """Or the groups would have to be chosen by the running statistics."""
    found = worst_channels(CASES[name])
    rounding = torch.finfo(torch.float32).eps / 2
    assert 0 < found["ilm_in"] <= 4 * max(found["source itself"], rounding)
    for to in ("ilm_gn", "ilm_ln"):
        assert found[to] <= 2 * found["ilm_in"] + 4 * rounding, found


@pytest.mark.parametrize("statistics", CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:.*never trained", "ignore::ilmconvert.errors.PrecisionLost")
def test_gradients_are_finite(statistics: Any) -> None:
    source = batch_norm(statistics, torch.float32)
    for to in TARGETS:
        layer = convert(source, to).requires_grad_(True)
        x = sample(source, torch.float32).requires_grad_()
        layer(x).mean().backward()
        assert all(t.grad.isfinite().all() for t in (x, *layer.parameters()))


@pytest.mark.parametrize("fill", [0.0, -7.5, 1e-40, 1e15])
@pytest.mark.parametrize("to", TARGETS)
def test_constant_and_tiny_inputs(to: str, fill: float) -> None:
    source = batch_norm(CASES["as usual"], torch.float32)
    x = torch.full((2, 64, 5, 5), fill)
    wanted = source.double()(x.double())
    converted = convert(batch_norm(CASES["as usual"], torch.float32), to)(x).double()
    torch.testing.assert_close(converted, wanted, rtol=1e-5, atol=1e-5)


def test_an_infinity_stays_in_its_instance() -> None:
    x = torch.randn(3, 64, 4, 4)
    x[1, 5, 0, 0] = torch.inf
    layer = convert(batch_norm(CASES["as usual"], torch.float32))
    alone = layer(x[[0, 2]])
    assert torch.equal(layer(x)[[0, 2]], alone)


@pytest.mark.parametrize("to", ["ilm_gn", "ilm_ln"])
def test_what_float16_cannot_hold_is_refused(to: str) -> None:
    source = batch_norm((every(2, 300.0, 0.0), 0.0), torch.float16)
    model = nn.Sequential(source)
    with pytest.raises(ConversionError, match=r"can't convert 0: .* beyond float16; convert the model in float32"):
        convert(model, to, inplace=True)
    assert model[0] is source
    x = sample(source, torch.float16)
    for layer in (convert(source, "ilm_in"), convert(source.float(), to)):
        assert layer(x).isfinite().all()


def test_dead_channels_leave_an_encoder_that_half_types_hold() -> None:
    layer = convert(batch_norm((torch.linspace(-1, 1, 64), 1e-12), torch.float16), "ilm_in")
    assert isinstance(layer, ILMNorm)
    assert layer.encoder.isfinite().all()
    assert layer.encoder.abs().max() > 0
    layer.weight_decoder.data.fill_(0.1)
    assert layer(torch.randn(2, 64, 3, 3).half()).isfinite().all()


def test_a_network_of_several_types() -> None:
    """Convolutions in bfloat16 and norms in float32, as such networks are trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), batch_norm(CASES["as usual"], torch.float32), nn.ReLU())
    model[0].to(torch.bfloat16)
    converted = convert(model)
    x = torch.randn(2, 3, 9, 9, dtype=torch.bfloat16)
    assert {t.dtype for t in converted[1].state_dict().values()} == {torch.float32}
    assert converted[0].weight.dtype == converted(x).dtype == torch.bfloat16
    torch.testing.assert_close(converted(x), model.eval()(x), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("to", TARGETS)
def test_the_statistics_cancel_exactly(to: str, size: int, memory_format: torch.memory_format) -> None:
    """One huge element changes the statistics of its groups beyond recognition, and no other output by a single bit."""
    converted = convert(batch_norm(CASES["as usual"], torch.float32), to)
    torch.manual_seed(0)
    x = torch.randn(2, 64, size, size).contiguous(memory_format=memory_format)
    spoilt = x.clone(memory_format=torch.preserve_format)
    spoilt[0, 5, 1, 1] = 1e9
    others = x == spoilt
    for layer in (converted, torch.compile(converted, backend="aot_eager")):
        assert torch.equal(layer(spoilt)[others], layer(x)[others])


@pytest.mark.parametrize("to", TARGETS)
def test_the_gradient_right_after_a_conversion_is_the_affine_functions(to: str) -> None:
    converted = convert(batch_norm(CASES["as usual"], torch.float32), to).requires_grad_(True)
    x = torch.randn(2, 64, 5, 5, requires_grad=True)
    grad = torch.randn_like(x)
    converted(x).backward(grad)
    gain = converted.restore_weight / converted.ref_std.repeat_interleave(64 // converted.num_groups)
    assert torch.equal(x.grad, grad * gain.view(-1, 1, 1))


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("spread", [1e2, 1e14])
@pytest.mark.filterwarnings("ignore:.*can't be trained well")
def test_a_unix_time_beside_a_rate(to: str, spread: float) -> None:
    """Raw columns of a table: the source's own error, whatever the groups."""
    torch.manual_seed(0)
    source = nn.BatchNorm1d(16).eval()
    source.running_mean.copy_(torch.tensor([1.6e9, 0.02]).repeat(8))
    source.running_var.copy_(torch.tensor([spread, 1e-4]).repeat(8))
    nn.init.uniform_(source.weight, 0.5, 2)
    nn.init.normal_(source.bias)
    x = torch.randn(64, 16) * source.running_var.sqrt() + source.running_mean
    wanted = copy.deepcopy(source).double()(x.double())
    for columns in (slice(None, None, 2), slice(1, None, 2)):
        own, ours = (
            (y[:, columns].double() - wanted[:, columns]).abs().max() for y in (source(x), convert(source, to)(x))
        )
        assert ours <= 2 * own + 1e-6 * wanted[:, columns].abs().max()
