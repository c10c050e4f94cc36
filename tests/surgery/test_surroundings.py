"""Whoever looks at a norm beside calling it: found before anything changes, and what hangs on a norm goes on."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilmconvert import ConversionError, ILMNorm, convert, plan
from ilmconvert.errors import NormsLeftBehind
from tests.helpers import randomize_norms, relative_error

C = 16
X = torch.randn(2, C, 5, 6, generator=torch.Generator().manual_seed(1))


class Reading(nn.Module):
    """Calls its norm, and looks at it in another way as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(C)
        self.more = nn.ModuleList([nn.BatchNorm2d(C), nn.BatchNorm2d(C)])


class Gate(Reading):
    """Attention by gamma (Normalization-based Attention Module)."""

    def forward(self, x: Tensor) -> Tensor:
        share = self.bn.weight.abs() / self.bn.weight.abs().sum()
        return self.bn(x) * share.view(1, -1, 1, 1)


class ByHand(Reading):
    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


class Looping(Reading):
    def forward(self, x: Tensor) -> Tensor:
        for index, norm in enumerate(self.more):
            x = norm(x) + norm.bias.view(1, -1, 1, 1) * index
        return self.bn(x)


class Helped(Reading):
    @property
    def gammas(self) -> list[Tensor]:
        return [norm.weight for norm in self.more]

    def total(self) -> Tensor:
        return sum(g.sum() for g in self.gammas)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) * self.total()


class Derived(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class ByName(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) + getattr(self.bn, "running_mean").view(1, -1, 1, 1)  # noqa: B009


class Other(nn.Module):
    """Reads a norm of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Reading()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.stem.more[0].running_mean
        return self.stem.bn(x) - mean.view(1, -1, 1, 1)


def scaled(norm: nn.Module, x: Tensor, *, twice: bool = False) -> Tensor:
    return scaled_by(x, norm, twice)


def scaled_by(x: Tensor, norm: nn.Module, twice: bool) -> Tensor:
    return x * norm.weight.view(1, -1, 1, 1) * (1 + twice)


class Passing(Reading):
    """Gives a norm to a function, which gives it to another, and to a method."""

    def forward(self, x: Tensor) -> Tensor:
        return self.centred(scaled(self.bn, self.bn(x)), norm=self.more[0])

    def centred(self, x: Tensor, norm: nn.Module) -> Tensor:
        return x - norm.running_mean.view(1, -1, 1, 1)


class Sorting(Reading):
    """Calls what it holds by their classes."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.bn, *self.more):
            if isinstance(layer, (nn.Linear, nn.BatchNorm2d)):
                x = layer(x)
        return x


READERS: dict[type[nn.Module], set[str]] = {
    Gate: {"bn"},
    ByHand: {"bn"},
    Looping: {"more.0", "more.1"},
    Helped: {"more.0", "more.1"},
    Derived: {"bn"},
    ByName: {"bn"},
    Other: {"stem.more.0"},
    Passing: {"bn", "more.0"},
    Sorting: {"bn", "more.0", "more.1"},
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_a_norm_that_others_read_stays_and_the_reader_is_named(kind: type[nn.Module], inside: bool) -> None:
    source = randomize_norms(kind()).eval()
    prefix = ""
    if inside:
        source, prefix = nn.Sequential(source).eval(), "0."
    the_plan = plan(source)
    assert {entry.name for entry in the_plan.skipped} == {prefix + name for name in READERS[kind]}
    assert len(the_plan) == 3
    for entry in the_plan.skipped:
        assert f"{kind.__name__}." in str(entry.reason)
        assert re.search("(reads|asks for) its", str(entry.reason))
    if len(READERS[kind]) == 3:
        with pytest.raises(ConversionError, match=r"nothing to convert; .*Sorting\.forward.* asks for its class"):
            convert(source)
        return
    with pytest.warns(NormsLeftBehind, match="reads its"):
        converted = convert(source)
    assert relative_error(converted(X), source(X)) <= 1e-5
    assert sum(isinstance(m, ILMNorm) for m in converted.modules()) == 3 - len(READERS[kind])


def test_a_reader_can_be_overruled() -> None:
    source = randomize_norms(Gate()).eval()
    assert [entry.name for entry in plan(source, include=["bn", "more.*"]).converted] == ["bn", "more.0", "more.1"]
    assert "bn" in [entry.name for entry in plan(source, include="*").skipped]


class Harmless(Reading):
    """Reads that any layer answers alike, code that doesn't run, and reads of other modules."""

    flag = False

    def __init__(self) -> None:
        super().__init__()
        self.by_hand = False
        self.conv = nn.Conv2d(C, C, 1)

    def fused(self) -> Tensor:
        return self.bn.weight / self.bn.running_var

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.bn.weight.dtype)
        if self.bn.weight is None or self.bn.weight.size(0) != self.bn.num_features:
            raise AssertionError
        if self.by_hand and x.dim() == 4:
            return x * self.bn.weight
        x = F.conv2d(x, self.conv.weight, self.conv.bias)
        return self.more[1](self.more[0](self.bn(x)))


def test_harmless_reads_are_left_alone() -> None:
    source = randomize_norms(Harmless()).eval()
    assert len(plan(source).converted) == 3
    assert relative_error(convert(source)(X), source(X)) <= 1e-5
    source.by_hand = True
    assert [entry.name for entry in plan(source).skipped] == ["bn"]


def test_whoever_asks_for_a_module_is_content_with_any() -> None:
    class Content(Reading):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.bn, nn.Module)
            assert not isinstance(self.bn, (nn.Conv2d, nn.Linear))
            return self.bn(x)

    assert len(plan(randomize_norms(Content())).converted) == 3


def test_the_class_of_a_group_norm_counts() -> None:
    class Asking(Reading):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) if isinstance(self.bn, nn.GroupNorm) else x

    source = Asking()
    source.bn = nn.GroupNorm(4, C)
    (entry,) = plan(randomize_norms(source)).skipped
    assert str(entry.reason).startswith("Asking.forward asks for its class, which")


def test_a_norm_that_trains_while_the_model_evaluates_is_said() -> None:
    source = randomize_norms(Reading()).eval()
    source.bn.train()
    with pytest.warns(UserWarning, match="^bn normalises by its batch, being in training mode in a model that"):
        convert(source)
    convert(source.train())
    convert(source.eval())


def test_gamma_of_a_group_norm_can_be_read() -> None:
    source = Gate()
    source.bn = nn.GroupNorm(4, C)
    randomize_norms(source).eval()
    assert len(plan(source).converted) == 3
    assert relative_error(convert(source)(X), source(X)) <= 1e-5


def test_hooks_that_read_statistics() -> None:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, result: Tensor) -> None:
        seen.append(module.running_mean)

    def shift(module: nn.Module, args: Any) -> Any:
        return (args[0] + module[1].bias.view(1, -1, 1, 1),)

    class Keeper:
        def __call__(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
            return result * module.weight.view(1, -1, 1, 1)

    source = randomize_norms(nn.Sequential(*(nn.BatchNorm2d(C) for _ in range(5)))).eval()
    source[0].register_forward_hook(keep)
    source.register_forward_pre_hook(shift)
    source[2].register_forward_hook(Keeper())
    source[3].register_forward_hook(lambda module, args, result: result * module.weight.mean())
    with pytest.warns(
        NormsLeftBehind, match=r"4 norm layers stay .*: 0 .*, 1 .*, 2 .*; a hook of 0 reads its running_mean"
    ):
        converted = convert(source)
    assert [type(m) for m in converted] == [nn.BatchNorm2d] * 4 + [ILMNorm]
    assert relative_error(converted(X), source(X)) <= 1e-5
    assert len(seen) == 2


def test_quantisation_aware_training() -> None:
    intrinsic = pytest.importorskip("torch.ao.nn.intrinsic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = torch.ao.quantization.get_default_qat_qconfig("x86")
        layer = intrinsic.qat.ConvBn2d(C, C, 1, qconfig=config)
        float_one = intrinsic.ConvBn2d(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    source = randomize_norms(nn.Sequential(layer, nn.BatchNorm2d(C), float_one)).eval()
    with pytest.warns(NormsLeftBehind, match=r"0\.bn .*a part of torch\.ao\.nn\.intrinsic\.qat\.ConvBn2d, which reads"):
        converted = convert(source)
    assert [entry.name for entry in plan(source).skipped] == ["0.bn", "2.1"]
    assert isinstance(converted[1], ILMNorm)
    assert relative_error(converted(X), source(X)) <= 1e-5


@pytest.mark.parametrize("inplace", [False, True])
def test_a_forward_of_the_instance_is_a_refusal(inplace: bool) -> None:
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))).eval()
    old = source[1].forward
    source[1].forward = lambda x: 2 * old(x)
    with pytest.raises(ConversionError, match=r"can't convert 1 .*: its forward was set on the instance"):
        convert(source, inplace=inplace)
    assert isinstance(source[0], nn.BatchNorm2d)
    converted = convert(source, exclude="1", inplace=inplace)
    assert isinstance(converted[0], ILMNorm)


def test_a_norm_that_hangs_on_another_norm() -> None:
    """Attributes go on, and what is held in them is replaced, too."""
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))).eval()
    source[0].__dict__["next"] = [source[1]]
    for inplace in (False, True):
        converted = convert(source, inplace=inplace)
        assert converted[0].next[0] is converted[1]
        assert isinstance(converted[1], ILMNorm)
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))).eval()
    norm = source[0]
    norm.register_forward_hook(lambda module, args, result: result + norm.eps)
    with pytest.raises(ConversionError, match=r"a function that uses norm\) holds it"):
        convert(source, inplace=True)


def test_hooks_of_accelerate_are_refused_with_their_cure() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C))).eval()
    hooks.add_hook_to_module(source[0], hooks.ModelHook())
    with pytest.raises(ConversionError, match=r"accelerate\.hooks\.remove_hook_from_module\(model, recurse=True\)"):
        convert(source)
    hooks.remove_hook_from_module(source, recurse=True)
    assert isinstance(convert(source)[0], ILMNorm)


class TestTiedParameters:
    def test_of_two_batch_norms_are_a_refusal(self) -> None:
        source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))).eval()
        source[1].weight = source[0].weight
        with pytest.raises(ConversionError, match=r"can't convert 0 .*: its weight is also 1\.weight") as refusal:
            convert(source)
        cure = str(refusal.value).partition("(weight = ")[2].partition("),")[0]
        source[1].weight = eval(cure, {"nn": nn, "weight": source[1].weight})
        assert relative_error(convert(source)(X), source(X)) <= 1e-5

    def test_with_another_module_are_a_refusal(self) -> None:
        source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.Identity())).eval()
        source[1].scale = source[0].weight
        with pytest.raises(ConversionError, match=r"its weight is also 1\.scale, and the two would come apart"):
            convert(source)
        assert isinstance(source[0], nn.BatchNorm2d)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_of_group_norms_stay_tied(self, inplace: bool) -> None:
        source = randomize_norms(nn.Sequential(nn.GroupNorm(4, C), nn.GroupNorm(2, C), nn.Identity())).eval()
        source[1].bias = source[0].bias
        source[2].shift = source[0].bias
        expected, bias = source(X).detach(), source[0].bias
        converted = convert(source, inplace=inplace)
        assert converted[0].bias is converted[1].bias is converted[2].shift
        assert (converted[0].bias is bias) == inplace
        assert relative_error(converted(X), expected) <= 1e-5

    def test_of_one_norm_under_two_names(self) -> None:
        norm = nn.BatchNorm2d(C)
        source = randomize_norms(nn.Sequential(norm, nn.Sequential(norm))).eval()
        assert relative_error(convert(source)(X), source(X)) <= 1e-5


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("to", ["ilm_gn", "gn"])
def test_attributes_of_modules_and_parameters_go_on(to: str, inplace: bool) -> None:
    config = {"observer": 1}
    source = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.GroupNorm(4, C))
    randomize_norms(source)
    for module in source:
        module.lr_mult, module.qconfig = 0.5, config
        module.weight._no_weight_decay, module.bias.lr_mult = True, 2.0
        module.weight.lr_mult = 2.0
    converted = convert(source, to, inplace=inplace)
    assert all(module.lr_mult == 0.5 and module.qconfig == config for module in converted)
    assert all((module.qconfig is config) == inplace for module in converted)
    assert (converted[1].num_features, converted[1].training) == (C, True)
    assert not hasattr(converted[1], "momentum")
    for name, parameter in converted.named_parameters():
        if name.startswith(("0.", "1.")) and not name.endswith(("decoder", "encoder")):
            assert parameter.lr_mult == 2.0, name
            assert hasattr(parameter, "_no_weight_decay") == ("bias" not in name), name
    if to == "ilm_gn":
        assert converted[1].weight_decoder._no_weight_decay
        assert converted[1].encoder.lr_mult == 2.0
        assert not hasattr(converted[1].encoder, "_no_weight_decay")
    assert converted[2].weight._no_weight_decay


@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_hooks_of_tensors_go_on(inplace: bool) -> None:
    source = randomize_norms(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.GroupNorm(4, C)))
    seen: list[str] = []

    def name_of(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: seen.append(name)

    handles = [module.weight.register_hook(name_of(str(i))) for i, module in enumerate(source)]
    source[1].bias.register_post_accumulate_grad_hook(name_of("after"))
    source[2].bias.register_hook(torch.zeros_like)
    assert "gradient hooks of its weight go on" in str(plan(source).converted[0].note)
    assert plan(source).converted[1].note == "keeps its own groups"
    converted = convert(source, inplace=inplace)
    converted(X).square().sum().backward()
    assert sorted(seen) == ["0", "1", "2", "after"]
    assert not converted[2].bias.grad.any()
    if inplace:
        for handle in handles:
            handle.remove()
        converted(X).sum().backward()
        assert sorted(seen) == ["0", "1", "2", "after", "after"]


def test_what_cannot_go_on_is_noted_in_the_plan() -> None:
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))).eval()
    source[0].register_buffer("mask", torch.ones(C))
    source[0].register_parameter("slope", nn.Parameter(torch.ones(1)))
    source[0].extra_repr = lambda: "mine"
    first, second = plan(source).converted
    assert first.note == "not carried over: extra_repr, slope, mask"
    assert second.note is None


@pytest.mark.parametrize("to", ["ilm_gn", "ilm_in", "gn"])
@pytest.mark.parametrize("inplace", [False, True])
def test_another_default_device(to: str, inplace: bool) -> None:
    torch.manual_seed(0)
    source = randomize_norms(timm.create_model("test_efficientnet")).eval()
    source.bare = nn.InstanceNorm2d(C)
    x = torch.randn(1, 3, 64, 64)
    expected = convert(source, to)(x)
    model = copy.deepcopy(source)
    with torch.device("meta"):
        converted = convert(model, to, inplace=inplace)
    assert {t.device.type for t in converted.state_dict().values()} == {"cpu"}
    assert torch.equal(converted(x), expected)


def test_recognition_under_another_default_device() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.randn(C))
            self.register_buffer("running_var", torch.rand(C) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            eps = torch.full((), 1e-3)
            mean, var = (t.view(-1, 1, 1) for t in (self.running_mean, self.running_var))
            return (x - mean) * (var + eps).rsqrt()

    source = nn.Sequential(Frozen()).eval()
    with torch.device("meta"):
        converted = convert(source)
    assert isinstance(converted[0], ILMNorm)
    assert relative_error(converted(X), source(X)) <= 1e-5
