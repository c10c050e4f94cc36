"""Source against converted: the numbers, the layers, the side-by-side run, and what a checkpoint implies."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilmconvert import ILMNorm, convert
from ilmconvert.errors import ModelError
from ilmconvert.evaluation import common_layers, fidelity, reconstruct_source, worst_layers
from ilmconvert.evaluation.output_metrics import split_batch
from ilmconvert.evaluation.verify.source_model import differing_tensors
from ilmconvert.surgery.paused_forward import run_side_by_side
from ilmconvert.surgery.record_calls import Call
from tests.helpers import TOLERANCE, randomize_norms, relative_error, source_network

SIZE = 64


def network(name: str = "test_resnet", **args: Any) -> nn.Module:
    return source_network(name, scale=0.5, **args)


def images(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def converted(source: nn.Module) -> nn.Module:
    return convert(source, "ilm_gn")


@pytest.fixture(scope="module")
def moments(source: nn.Module) -> nn.Module:
    return convert(source, "ilm_gn", init="moments")


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_an_exact_conversion(source: nn.Module, converted: nn.Module) -> None:
    found = fidelity(source, converted, [images(4), images(2, seed=2)])
    assert (found.count, found.classes, found.not_finite, found.labelled) == (6, 1000, 0, 0)
    assert found.top1_agreement == found.top5_agreement == 1
    assert 0 < found.relative_error < TOLERANCE[torch.float32]
    assert found.kl is not None
    assert 0 <= found.kl < 1e-8
    norms = [name for name, module in converted.named_modules() if isinstance(module, ILMNorm)]
    assert sorted(layer.name for layer in found.layers) == sorted(norms)
    assert all(layer.snr > 80 and (layer.own_snr or 0) > 80 for layer in found.layers)
    assert found.cost is not None
    assert found.cost.converted_parameters == sum(p.numel() for p in converted.parameters())
    assert min(found.cost.source_seconds, found.cost.converted_seconds) > 0


def test_numbers_are_those_of_the_logits(source: nn.Module, moments: nn.Module) -> None:
    x, labels = images(7), torch.tensor([3, -1, 5, 0, 999, -1, 3])
    with torch.no_grad():
        a, b = source(x), moments(x)
    labels[0] = a[0].argmax()
    labels[2] = b[2].argmax()
    found = fidelity(source, moments, [(x[:3], labels[:3]), (x[3:], labels[3:])], cost=False)
    same = a.argmax(1) == b.argmax(1)
    assert found.top1_agreement == pytest.approx(same.float().mean().item())
    five = (b.topk(5).indices == a.argmax(1, keepdim=True)).any(1)
    assert found.top5_agreement == pytest.approx(five.float().mean().item())
    kl = F.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.largest_kl == pytest.approx(kl.max().item(), rel=1e-4)
    error = (a - b).abs()
    assert found.largest_error == pytest.approx(error.max().item(), rel=1e-4)
    assert found.mean_error == pytest.approx(error.mean().item(), rel=1e-4)
    assert found.relative_error == pytest.approx((error.max() / a.abs().max()).item(), rel=1e-4)
    known = labels >= 0
    assert found.labelled == 5
    assert found.source_top1 == pytest.approx((a.argmax(1) == labels)[known].float().mean().item())
    assert found.converted_top1 == pytest.approx((b.argmax(1) == labels)[known].float().mean().item())
    order = sorted(range(7), key=lambda i: (bool(same[i]), -kl[i].item()))
    assert [image.index for image in found.images] == order
    first = found.images[0]
    assert first.source_class == int(a[first.index].argmax())
    assert first.converted_probability == pytest.approx(b[first.index].softmax(0).max().item(), rel=1e-4)
    assert first.label == (int(labels[first.index]) if known[first.index] else None)


def test_how_batches_are_cut_makes_no_difference(source: nn.Module, moments: nn.Module) -> None:
    x = images(6)
    whole = fidelity(source, moments, [x], cost=False, worst=3)
    parts = fidelity(source, moments, x.split(1), cost=False, worst=3)
    assert [p.index for p in whole.images] == [p.index for p in parts.images]
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.name == other.name
        assert one.snr == pytest.approx(other.snr, abs=1e-3)
        assert one.largest_error == pytest.approx(other.largest_error, rel=1e-3)


def test_layers_show_where_the_error_starts(source: nn.Module) -> None:
    broken = convert(source, "ilm_ln")
    names = common_layers(source, broken)
    victim = names[len(names) // 2]
    broken.get_submodule(victim).weight.data *= 1.1  # type: ignore[union-attr, operator]
    found = fidelity(source, broken, [images(2)], cost=False).layers
    place = [layer.name for layer in found].index(victim)
    assert all(layer.snr > 80 for layer in found[:place])
    assert all(layer.snr < 60 for layer in found[place:])
    assert [layer.name for layer in found if (layer.own_snr or 0) < 60] == [victim]
    assert worst_layers(found, 1, alone=True)[0].name == victim


def test_the_ratio_is_in_decibels() -> None:
    a, b = nn.Sequential(nn.Identity()), nn.Sequential(nn.Hardtanh(-1e9, 0.9))
    layer = fidelity(a, b, [torch.ones(2, 3)], layers="all").layers[0]
    assert layer.snr == pytest.approx(20, abs=1e-3)
    assert (layer.source, layer.converted, layer.own_snr) == ("Identity", "Hardtanh", None)
    assert layer.relative_error == pytest.approx(0.1, abs=1e-6)
    assert fidelity(a, a, [torch.ones(2, 3)], layers="all").layers[0].snr == math.inf


def test_a_nan_is_seen_everywhere(source: nn.Module) -> None:
    broken = convert(source)
    name = common_layers(source, broken)[2]
    broken.get_submodule(name).bias.data[0] = math.nan  # type: ignore[union-attr, index]
    found = fidelity(source, broken, [images(2)])
    assert found.not_finite == 2
    assert math.isnan(found.relative_error)
    assert found.top1_agreement == 0
    assert math.isnan(worst_layers(found.layers, 1)[0].snr)
    assert not any(image.agrees for image in found.images)


def test_models_stay_as_they_were(source: nn.Module, converted: nn.Module) -> None:
    source.train()
    source.get_submodule("bn1").eval()
    before = {name: module.training for name, module in source.named_modules()}
    values = {name: t.clone() for name, t in source.state_dict().items()}
    fidelity(source, converted, [images(2)], cost=False)
    assert {name: module.training for name, module in source.named_modules()} == before
    assert all(torch.equal(t, values[name]) for name, t in source.state_dict().items())
    for model in (source, converted):
        assert not any(module._forward_hooks for module in model.modules())
    source.eval()


def test_which_layers(source: nn.Module, converted: nn.Module) -> None:
    everything = common_layers(source, converted, "all")
    assert set(common_layers(source, converted)) < set(everything)
    assert "conv1.0" in everything
    # what stands inside an ILM Norm has nothing to be compared with
    assert not any(name.endswith((".act", ".drop")) for name in everything if name.rpartition(".")[0] in everything)
    assert common_layers(source, converted, ["layer1.*", "fc"])[-1] == "fc"
    assert fidelity(source, converted, [images(1)], layers="none", cost=False).layers == ()
    with pytest.raises(ModelError, match="matches nowhere"):
        common_layers(source, converted, "nowhere")


def test_outputs_that_are_no_logits() -> None:
    class Two(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x * self.scale, "aux": x.mean()}

    found = fidelity(Two(1.0), Two(1.5), [torch.full((2, 3, 4, 4), 2.0)])
    assert (found.classes, found.top1_agreement, found.kl, found.images) == (None, None, None, ())
    assert found.largest_error == pytest.approx(1.0)
    assert found.relative_error == pytest.approx(0.5)


def test_what_cannot_be_compared(source: nn.Module) -> None:
    with pytest.raises(ModelError, match="no image"):
        fidelity(source, source, [])
    with pytest.raises(ModelError, match="different shapes"):
        fidelity(source, network(num_classes=7), [images(1)], layers="none")
    with pytest.raises(ModelError, match="a batch is a tensor"):
        split_batch({"x": 1})


def test_half_precision_against_single(source: nn.Module) -> None:
    half = convert(source).to(torch.bfloat16)
    found = fidelity(source, half, [images(2)], cost=False)
    assert 1e-4 < found.relative_error < 0.3


class TestSideBySide:
    class Chain(nn.Module):
        def __init__(self, order: tuple[str, ...] = ("a", "b"), fails: bool = False) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.ReLU(inplace=True)
            self.order, self.fails = order, fails

        def forward(self, x: Tensor) -> Tensor:
            for name in self.order:
                x = self.get_submodule(name)(x)
            if self.fails:
                raise ValueError("model failed")
            return x

    @staticmethod
    def run(one: nn.Module, other: nn.Module, names: tuple[str, ...] = ("a", "b")) -> list[str]:
        seen: list[str] = []
        x = torch.randn(2, 3)
        run_side_by_side(one, other, (x,), (x,), names, lambda first, second: seen.append(first.name + second.name))
        return seen

    def test_calls_meet_in_order(self) -> None:
        model = self.Chain()
        assert self.run(model, model) == ["aa", "bb"]
        assert self.run(self.Chain(("a", "b", "a")), self.Chain(("a", "b", "a"))) == ["aa", "bb", "aa"]

    def test_outputs_are_seen_before_they_are_changed_in_place(self) -> None:
        one = self.Chain()
        seen = []
        x = torch.randn(64, 3)
        run_side_by_side(one, one, (x,), (x,), ["a"], lambda first, second: seen.append(first.result.min().item()))
        assert seen[0] < 0

    @pytest.mark.parametrize("orders", [(("a", "b"), ("b", "a")), (("a",), ("a", "b")), (("a", "b"), ("a",))])
    def test_another_order_is_an_error(self, orders: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        with pytest.raises(ModelError, match="different orders"):
            self.run(self.Chain(orders[0]), self.Chain(orders[1]))

    @pytest.mark.parametrize(("one", "other"), [(True, False), (False, True), (True, True)])
    def test_a_failure_reaches_the_caller(self, one: bool, other: bool) -> None:
        with pytest.raises(ValueError, match="model failed"):
            self.run(self.Chain(fails=one), self.Chain(fails=other))

    def test_a_failing_comparison_reaches_the_caller(self) -> None:
        def refuse(first: Call, second: Call) -> None:
            raise KeyError(first.name)

        x = torch.ones(1, 3)
        with pytest.raises(KeyError, match="a"):
            run_side_by_side(self.Chain(), self.Chain(), (x,), (x,), ["a", "b"], refuse)

    def test_no_activation_outlives_its_layer(self, source: nn.Module, converted: nn.Module) -> None:
        alive: list[weakref.ref[Tensor]] = []
        largest = 0

        def compare(first: Call, second: Call) -> None:
            nonlocal largest
            alive.extend(weakref.ref(call.result) for call in (first, second))
            largest = max(largest, sum(reference() is not None for reference in alive))

        names = common_layers(source, converted)
        x = images(1)
        run_side_by_side(source, converted, (x,), (x,), names, compare)
        assert len(alive) == 2 * len(names)
        # a layer's own two, and those of the residual branch that goes around it
        assert largest <= 6


class TestImpliedSource:
    @pytest.mark.parametrize(
        ("name", "to"),
        [
            ("test_resnet", "ilm_gn"),
            ("test_resnet", "ilm_ln"),
            ("test_efficientnet", "ilm_in"),
            ("test_efficientnet_gn", "ilm_gn"),
        ],
    )
    def test_it_is_the_source(self, name: str, to: str) -> None:
        model = network(name)
        new = convert(model, to)
        reconstructed = reconstruct_source(new)
        assert not any(isinstance(module, ILMNorm) for module in reconstructed.modules())
        x = images(2)
        with torch.no_grad():
            assert relative_error(reconstructed(x), model(x)) < TOLERANCE[torch.float32]

    @pytest.mark.parametrize("source_norm", [nn.GroupNorm(4, 8), nn.GroupNorm(1, 8, affine=False), nn.BatchNorm1d(8)])
    def test_single_layers(self, source_norm: nn.Module) -> None:
        model = randomize_norms(nn.Sequential(source_norm)).eval()
        x = torch.randn(5, 8)
        assert relative_error(reconstruct_source(convert(model))(x), model(x)) < TOLERANCE[torch.float32]

    def test_a_bound_is_left_out(self, source: nn.Module) -> None:
        bounded = convert(source, "ilm_ln", restore_bound=0.5)
        x = 4 * images(2)
        with torch.no_grad():
            assert relative_error(bounded(x), source(x)) > 1e-2
            assert relative_error(reconstruct_source(bounded)(x), source(x)) < TOLERANCE[torch.float32]

    @pytest.mark.parametrize("tensor", ["weight", "restore_bias", "weight_decoder", "bias_decoder"])
    def test_a_trained_layer_does_not_tell(self, source: nn.Module, tensor: str) -> None:
        new = convert(source)
        with torch.no_grad():
            new.get_submodule("bn1").get_parameter(tensor).view(-1)[0] += 0.01
        with pytest.raises(ModelError, match="bn1 was trained"):
            reconstruct_source(new)


def test_differing_tensors(source: nn.Module) -> None:
    new = convert(source)
    assert differing_tensors(source, new) == []
    with torch.no_grad():
        new.get_submodule("fc").get_parameter("bias")[3] += 1e-6
    assert differing_tensors(source, new) == ["fc.bias"]
