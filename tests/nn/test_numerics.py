"""The bound of docs/numerics.md, held against float64 where running statistics, inputs and types are extreme."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.numerics import CASES, TARGETS, TYPES, Types, batch_norm, bound, cases, errors, every, sample
from ilmconvert import ConversionError, ILMNorm, convert

UNITS = 8.0  # of rounding
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*never trained")
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


@pytest.mark.parametrize("statistics", CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:.*never trained")
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
