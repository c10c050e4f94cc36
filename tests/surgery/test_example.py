"""A conversion that is tried on an example: what computes something else is refused, and named."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ilmconvert import ConversionError, ILMNorm, convert, plan
from ilmconvert.surgery.example import find_difference
from tests.helpers import randomize_norms, relative_error, source_network

C = 16
X = torch.randn(2, C, 5, 6, generator=torch.Generator().manual_seed(1))


def values_of(norm: nn.Module) -> Tensor:
    """A reader that the search of the source text doesn't follow into."""
    return norm.weight.view(1, -1, 1, 1)


def statistics_of(norm: nn.Module) -> Tensor:
    return norm.running_mean.view(1, -1, 1, 1)


class Reading(nn.Module):
    def __init__(self, read: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(C)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) + self.read(self.bn)


def reading(read: Callable[[nn.Module], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Sequential(Reading(read), nn.ReLU(inplace=True)), nn.Flatten()]
    return randomize_norms(nn.Sequential(*parts)).eval()


def refused(source: nn.Module, match: str, *, example: Any = X, **arguments: Any) -> None:
    """Refused with this message, and the model as it was, flags included."""
    source.train()
    modules = dict(source.named_modules())
    before = {name: t.clone() for name, t in source.state_dict().items()}
    for inplace in (False, True):
        with pytest.raises(ConversionError, match=match):
            convert(source, inplace=inplace, example=example, **arguments)
        assert dict(source.named_modules()) == modules
        assert all(module.training for module in source.modules())
        assert all(torch.equal(before[name], t) for name, t in source.state_dict().items())


def test_a_reader_of_gamma_is_named() -> None:
    message = (
        r"^the converted model isn't the same, it computes something else on the example \(relative error .*\): "
        r"2\.0 \(Reading\) is the first module to differ; values_of \(test_example\.py:\d+\) reads weight of 2\.0\.bn: "
        r"exclude '2\.0\.bn'$"
    )
    source = reading(values_of)
    refused(source, message)
    converted = convert(source, exclude="2.0.bn", example=X)
    assert isinstance(converted[1], ILMNorm)
    assert relative_error(converted.eval()(X), source.eval()(X)) <= 1e-5


def test_a_reader_of_statistics_is_named() -> None:
    source = reading(statistics_of)
    refused(
        source, r"it fails on the example: NoRunningStatistics: .*; statistics_of .* reads running_mean of 2\.0\.bn"
    )
    convert(source, exclude="2.0.bn", example=X)
    with pytest.raises(ConversionError, match="statistics_of"):
        convert(source, exclude="1", example=X)


def test_a_model_whose_code_looks_at_types() -> None:
    class Counting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            kinds = sum(type(m) is nn.BatchNorm2d for m in self)
            return super().forward(x) * kinds

    refused(
        randomize_norms(Counting(nn.BatchNorm2d(C), nn.BatchNorm2d(C))), r"the root \(Counting\) is the first module to"
    )


def test_a_layer_that_was_described_wrongly_is_named() -> None:
    import ilmconvert
    from ilmconvert.surgery.sources import _registered

    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def describe(m: Doubled) -> ilmconvert.NormDescription:
        return ilmconvert.NormDescription(C, m.eps, m.weight, m.bias, m.running_mean, m.running_var)

    ilmconvert.register_source(Doubled, describe)
    try:
        refused(
            randomize_norms(nn.Sequential(nn.BatchNorm2d(C), Doubled(C))), r": 1 \(Doubled\) is the first module to"
        )
    finally:
        _registered.pop(Doubled)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_right_conversion_passes(dtype: torch.dtype, inplace: bool) -> None:
    source = source_network("test_resnet", scale=0.5).to(dtype)
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    expected = copy.deepcopy(source)
    converted = convert(source, example=x, inplace=inplace)
    assert any(isinstance(m, ILMNorm) for m in converted.modules())
    assert all(torch.equal(a, b) for a, b in zip(convert(expected).parameters(), converted.parameters(), strict=True))


def test_rounding_that_is_amplified_passes() -> None:
    """Two nearly equal numbers are subtracted: the float32 results differ, and only the float64 ones tell."""

    class Amplified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(C)
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(x)
            return (y * self.scale).sin()

    source = randomize_norms(Amplified()).eval()
    assert relative_error(convert(source)(X), source(X)) > 1e-4
    assert find_difference(source, plan(source), X) is None
    for inplace in (False, True):
        assert isinstance(convert(copy.deepcopy(source), example=X, inplace=inplace).bn, ILMNorm)


def test_a_model_that_runs_in_single_precision_only() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(C)
            self.conv = nn.Conv2d(C, C, 1)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32 == self.conv.weight.dtype
            return self.bn(self.conv(x)) * self.bn.running_var.numel() + sum(p.sum() for p in self.bn.parameters())

    source = randomize_norms(Single()).eval()
    refused(source, r"NoRunningStatistics: .*; forward .* of the root reads running_var of bn", include=["bn"])


class TestInputs:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(C)
            self.seen: list[bool] = []

        def forward(self, x: Tensor, *, scale: Tensor, flag: bool = False) -> dict[str, Any]:
            self.seen.append(flag)
            return {"y": self.bn(x) * scale, "none": None}

    def test_positional_and_named_ones(self) -> None:
        source = randomize_norms(self.Two()).eval()
        example = {"x": X, "scale": torch.ones(1), "flag": True}
        assert isinstance(convert(source, example=example).bn, ILMNorm)
        assert source.seen == [True]
        two = randomize_norms(nn.Sequential(nn.BatchNorm2d(C))).eval()
        assert isinstance(convert(two, example=(X,))[0], ILMNorm)

    def test_those_that_the_model_refuses(self) -> None:
        source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C))).eval()
        refused(source, "the model itself fails on the example: RuntimeError", example=X[:, :3])
        refused(source, "gives NaN or infinity for the example", example=X * float("nan"))

    def test_outputs_that_cannot_be_compared(self) -> None:
        class Silent(nn.Sequential):
            def forward(self, x: Tensor) -> None:
                super().forward(x)

        refused(randomize_norms(Silent(nn.BatchNorm2d(C))), "Silent returns no tensor for the example")

    def test_they_stay_as_they_are(self) -> None:
        x = X.clone()
        source = randomize_norms(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(C))).eval()
        convert(source, example=x)
        assert torch.equal(x, X)


def test_random_outputs() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    source = randomize_norms(Noisy(nn.BatchNorm2d(C))).eval()
    state = torch.get_rng_state()
    assert isinstance(convert(source, example=X)[0], ILMNorm)
    assert torch.equal(torch.get_rng_state(), state)

    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    refused(randomize_norms(Counting(nn.BatchNorm2d(C))), "other outputs for the same example each time")


@pytest.mark.parametrize("arguments", [{"init": "moments"}, {"restore_bound": 2.0}, {"to": "gn"}], ids=str)
def test_what_is_only_close_has_to_run(arguments: dict[str, Any]) -> None:
    source = source_network()
    converted = convert(source, example=torch.randn(1, 3, 64, 64), **arguments)
    assert converted is not source
    match = r"it fails on the example: .*running_mean"
    source = reading(statistics_of)
    for inplace in (False, True):
        with pytest.raises(ConversionError, match=match):
            convert(source, example=X, inplace=inplace, **arguments)
        assert isinstance(source[1], nn.BatchNorm2d)


def test_a_plan_and_an_example() -> None:
    source = reading(values_of)
    with pytest.raises(ConversionError, match=r"reads weight of 2\.0\.bn"):
        convert(source, plan(source), example=X)
    convert(source, plan(source, exclude="2.0.bn"), example=X)


def test_nothing_to_do_needs_no_example() -> None:
    once = convert(randomize_norms(nn.Sequential(nn.BatchNorm2d(C))).eval())
    with pytest.warns(UserWarning, match="nothing to do"):
        convert(once, example=X)


def test_a_network_of_timm_and_its_features() -> None:
    source = randomize_norms(timm.create_model("test_efficientnet", features_only=True), scale=0.5).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(source, example=torch.randn(1, 3, 64, 64))
