"""A converted model computes what its source computes, and nothing else about it changes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers import (
    BatchNormAct2d,
    GroupNorm1Act,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from timm.layers import GroupNorm as TimmGroupNorm
from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.models.metaformer import GroupNorm1NoBias
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import ilmconvert
from ilmconvert import ConversionError, ILMNorm, NormDescription, convert, plan
from ilmconvert.errors import NormsLeftBehind
from ilmconvert.nn import ILMNormAct
from tests.helpers import randomize_norms, relative_error

TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        y = model(x)
    return list(y.values()) if isinstance(y, dict) else [y]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        name: (lambda name=name: timm.create_model(name), (2, 3, 64, 64))
        for name in ("test_resnet", "test_byobnet", "test_efficientnet")
    },
    **{
        name: (lambda name=name: getattr(torchvision.models, name)(weights=None), (2, 3, 64, 64))
        for name in ("resnet18", "mobilenet_v2", "densenet121")
    },
    "r3d_18": (lambda: torchvision.models.video.r3d_18(weights=None), (1, 3, 4, 32, 32)),
    "lraspp": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
        (1, 3, 64, 64),
    ),
}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_batch_norm_networks_stay_exact(name: str, to: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    source = randomize_norms(build()).eval()
    converted = convert(source, to)
    x = torch.randn(shape)
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not norms
    assert sum(isinstance(m, ILMNorm) for m in converted.modules()) == len(plan(source, to).converted)
    assert relative_error(outputs(converted, x), outputs(source, x)) <= 1e-5


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", ["test_resnet", "mobilenet_v2", "r3d_18"])
def test_float64_is_exact_to_rounding(name: str, to: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    source = randomize_norms(build()).eval().double()
    x = torch.randn(shape, dtype=torch.float64)
    assert relative_error(outputs(convert(source, to), x), outputs(source, x)) <= 1e-12


def test_group_norm_network_keeps_its_groups() -> None:
    source = randomize_norms(timm.create_model("test_efficientnet_gn")).eval()
    x = torch.randn(2, 3, 64, 64)
    converted = convert(source)
    assert relative_error(outputs(converted, x), outputs(source, x)) <= 1e-5
    groups = {name: m.num_groups for name, m in source.named_modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {name: m.num_groups for name, m in converted.named_modules() if isinstance(m, ILMNorm)}
    with pytest.raises(ConversionError, match="groups can't become 1"):
        convert(source, "ilm_ln")
    moments = convert(source, "ilm_ln", init="moments")
    assert {m.num_groups for m in moments.modules() if isinstance(m, ILMNorm)} == {1}
    assert "are lost" in plan(source, "ilm_ln", init="moments").converted[0].note


def sources_2d() -> dict[str, nn.Module]:
    drop_and_act = {"act_layer": nn.Hardswish, "drop_layer": nn.Identity}
    sync = nn.SyncBatchNorm(12)
    fused = nn.Sequential(BatchNormAct2d(12, **drop_and_act))
    return {
        "BatchNorm2d": nn.BatchNorm2d(12, eps=1e-3),
        "BatchNorm2d without affine": nn.BatchNorm2d(12, affine=False),
        "SyncBatchNorm": sync,
        "FrozenBatchNorm2d": FrozenBatchNorm2d(12, eps=0.0),
        "BatchNormAct2d": BatchNormAct2d(12, **drop_and_act),
        "BatchNormAct2d without act": BatchNormAct2d(12, apply_act=False),
        "SyncBatchNormAct": convert_sync_batchnorm(copy.deepcopy(fused))[0],
        "FrozenBatchNormAct2d": freeze_batch_norm_2d(copy.deepcopy(fused))[0],
        "GroupNorm": nn.GroupNorm(3, 12),
        "timm GroupNorm": TimmGroupNorm(12, num_groups=4),
        "timm GroupNorm1": TimmGroupNorm1(12),
        "GroupNormAct": GroupNormAct(12, num_groups=6, act_layer=nn.SiLU),
        "GroupNorm1Act": GroupNorm1Act(12, act_layer=nn.SiLU),
        "GroupNorm1NoBias": GroupNorm1NoBias(12),
        "InstanceNorm2d": nn.InstanceNorm2d(12),
        "affine InstanceNorm2d": nn.InstanceNorm2d(12, affine=True),
        "tracking InstanceNorm2d": nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
    }


@pytest.mark.parametrize("kind", sources_2d())
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_source_type(kind: str, memory_format: torch.memory_format) -> None:
    source = randomize_norms(sources_2d()[kind]).eval()
    x = (torch.randn(2, 12, 5, 6) * 2 + 1).contiguous(memory_format=memory_format)
    converted = convert(source)
    assert type(converted) in (ILMNorm, ILMNormAct)
    expected = source.cpu()(x.clone()) if not isinstance(source, nn.SyncBatchNorm) else batch_norm_of(source, x)
    assert relative_error(converted(x.clone()), expected) <= 1e-5
    assert converted(x).stride() == x.stride()


def batch_norm_of(m: nn.SyncBatchNorm, x: torch.Tensor) -> torch.Tensor:
    """What SyncBatchNorm computes in evaluation; some versions of its forward want a GPU."""
    y = torch.nn.functional.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)
    return m.act(y) if hasattr(m, "act") else y


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (nn.BatchNorm1d(24), (5, 24)),
        (nn.BatchNorm1d(24), (5, 24, 7)),
        (nn.BatchNorm3d(24), (2, 24, 3, 4, 5)),
        (nn.InstanceNorm1d(24, affine=True), (5, 24, 7)),
        (nn.InstanceNorm3d(24), (2, 24, 3, 4, 5)),
        (nn.GroupNorm(6, 24), (5, 24)),
        (nn.BatchNorm2d(24), (0, 24, 3, 3)),
        (nn.BatchNorm2d(24), (1, 24, 1, 1)),
        (nn.BatchNorm2d(19), (2, 19, 3, 3)),
        (nn.BatchNorm2d(1), (2, 1, 3, 3)),
    ],
    ids=lambda p: str(p) if isinstance(p, tuple) else type(p).__name__,
)
@pytest.mark.parametrize("to", ["ilm_gn", "ilm_in"])
def test_other_dimensions(source: nn.Module, shape: tuple[int, ...], to: str) -> None:
    source = randomize_norms(copy.deepcopy(source)).eval()
    if isinstance(source, nn.GroupNorm) and to == "ilm_in":
        with pytest.raises(ConversionError, match="6 groups can't become 24"):
            convert(source, to)
        return
    x = torch.randn(shape)
    assert relative_error(convert(source, to)(x), source(x)) <= 1e-5


def test_unusual_scales_stay_exact() -> None:
    torch.manual_seed(0)
    source = nn.BatchNorm2d(64)
    with torch.no_grad():
        source.running_mean.normal_(std=50)
        source.running_var.copy_(torch.logspace(-4, 4, 64))
        source.weight.normal_()
    source.eval().requires_grad_(False)
    x = torch.randn(2, 64, 9, 9) * source.running_var.sqrt().view(-1, 1, 1) + source.running_mean.view(-1, 1, 1)
    double, wide = copy.deepcopy(source).double(), x.double()
    exact = double(wide)
    # Means of up to 5000 standard deviations. a x + c with the constants in float32 rounds a x to half a unit in the
    # last place, the sum again, and c once when it is stored: 3/2 units of the largest product is all that may be lost.
    products = wide * (double.weight / (double.running_var + double.eps).sqrt()).view(-1, 1, 1)
    unit = torch.finfo(torch.float32).eps * (products.abs().max() / exact.abs().max()).item()
    assert relative_error(convert(source, "ilm_in")(x), exact) <= 1.5 * unit
    for to in TARGETS:
        assert relative_error(convert(double, to)(wide), exact) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_models(dtype: torch.dtype) -> None:
    source = randomize_norms(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))).eval().to(dtype)
    converted = convert(source)
    assert {t.dtype for t in converted.state_dict().values()} == {dtype}
    x = torch.randn(2, 3, 9, 9, dtype=dtype)
    assert relative_error(converted(x), source(x)) <= {torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]


def test_moments_start_is_exact_for_a_typical_instance() -> None:
    source = randomize_norms(nn.BatchNorm2d(32)).eval()
    converted = convert(source, "ilm_in", init="moments")
    assert converted.restore_weight is None
    x = torch.randn(1, 32, 400, 400)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)
    typical = x * source.running_var.sqrt().view(-1, 1, 1) + source.running_mean.view(-1, 1, 1)
    assert relative_error(converted(typical), source(typical)) <= 1e-5
    assert relative_error(converted(2 * typical), source(2 * typical)) > 0.1


def test_bound_normalises_outliers_only() -> None:
    source = randomize_norms(nn.BatchNorm2d(32)).eval()
    bounded = convert(source, restore_bound=4.0)
    assert bounded.restore_bound == 4.0
    typical = torch.randn(2, 32, 64, 64) * source.running_var.sqrt().view(-1, 1, 1) + source.running_mean.view(-1, 1, 1)
    assert relative_error(bounded(typical), source(typical)) < 0.02
    assert bounded(1000 * typical).abs().max() < 0.1 * source(1000 * typical).abs().max()


class Shared(nn.Module):
    """One norm under two names of one parent, under another parent, and in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)
        self.first = nn.BatchNorm2d(16)
        self.second = self.first
        self.block = nn.ModuleDict({"norm": self.first, "act": nn.ReLU()})
        self.plain = [self.first]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain[0](self.block["norm"](self.second(self.first(self.conv(x)))))


@pytest.mark.parametrize("inplace", [False, True])
def test_every_alias_becomes_the_one_new_layer(inplace: bool) -> None:
    source = randomize_norms(Shared()).eval()
    if inplace:
        source.plain = nn.ModuleList(source.plain)
    x = torch.randn(2, 3, 5, 5)
    expected = source(x)
    converted = convert(source, inplace=inplace)
    assert converted.first is converted.second is converted.block["norm"] is converted.plain[0]
    assert list(converted._modules)[:4] == ["conv", "first", "second", "block"]
    assert relative_error(converted(x), expected) <= 1e-5
    (entry,) = plan(Shared())
    assert (entry.name, entry.aliases) == ("first", ("second", "block.norm"))


def test_not_in_place_leaves_the_source_alone() -> None:
    source = randomize_norms(timm.create_model("test_resnet"))
    before = {k: v.clone() for k, v in source.state_dict().items()}
    types = [(n, type(m)) for n, m in source.named_modules()]
    converted = convert(source)
    with torch.no_grad():
        for t in converted.state_dict().values():
            t.zero_()
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
    assert types == [(n, type(m)) for n, m in source.named_modules()]
    assert not {id(m) for m in source.modules()} & {id(m) for m in converted.modules()}


def test_in_place_changes_the_model_itself() -> None:
    source = randomize_norms(timm.create_model("test_efficientnet")).eval()
    expected, x = copy.deepcopy(source), torch.randn(2, 3, 64, 64)
    act = source.bn1.act
    assert convert(source, inplace=True) is source
    assert source.bn1.act is act
    assert relative_error(source(x), expected(x)) <= 1e-5


def test_training_flags_gradients_and_hooks_are_kept() -> None:
    source = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.BatchNorm2d(16), FrozenBatchNorm2d(16))
    randomize_norms(source)
    source[1].eval()
    source[2].weight.requires_grad_(False)
    calls: list[type] = []
    source[1].register_forward_hook(lambda module, args, output: calls.append(type(module)))
    source[2].register_forward_pre_hook(lambda module, args: calls.append(type(module)))
    source[2].register_full_backward_hook(lambda module, *grads: calls.append(type(grads)))
    converted = convert(source)
    assert [m.training for m in converted] == [m.training for m in source]
    assert all(p.requires_grad for p in converted[1].parameters())
    frozen = {n for n, p in converted[2].named_parameters() if not p.requires_grad}
    assert frozen == {"weight", "weight_decoder", "restore_weight"}
    assert not any(p.requires_grad for p in converted[3].parameters())
    converted(torch.randn(2, 3, 4, 4)).sum().backward()
    assert calls == [ILMNorm, ILMNorm, tuple]


def test_patterns_select_layers() -> None:
    source = randomize_norms(timm.create_model("test_resnet"))

    def converted_names(**patterns: object) -> set[str]:
        return {n for n, m in convert(source, **patterns).named_modules() if isinstance(m, ILMNorm)}

    everything = converted_names()
    assert converted_names(include="layer1.*") == {n for n in everything if n.startswith("layer1.")}
    assert converted_names(exclude=["layer1.*", "bn1"]) == {
        n for n in everything if not n.startswith("layer1.") and n != "bn1"
    }
    with pytest.warns(UserWarning, match=r"pattern 'layer9\.\*' matches no norm layer"):
        assert converted_names(exclude="layer9.*") == everything
    with pytest.raises(
        ConversionError,
        match=r"pattern 'nothing' matches no norm layer; .* \(not matched by include\); .*plan MODEL, lists",
    ):
        convert(source, include="nothing")  # without a warning, which would be an error here


def test_the_first_norm_alone() -> None:
    source = randomize_norms(timm.create_model("test_resnet")).eval()
    norms = [name for name, module in source.named_modules() if isinstance(module, nn.BatchNorm2d)]
    model = convert(source, "ilm_in", first_only=True)
    assert [layer.name for layer in ilmconvert.info(model).layers] == norms[:1]
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x), source(x)) < 1e-5
    second = plan(source, first_only=True, exclude=norms[0])
    assert [entry.name for entry in second.converted] == norms[1:2]
    assert {entry.reason for entry in second.skipped} == {f"excluded by {norms[0]!r}", "not the first norm"}
    with pytest.warns(UserWarning, match="nothing to do"):
        assert len(ilmconvert.info(convert(model, "ilm_in", first_only=True)).layers) == 1


def test_behind_the_first_norm_nothing_is_refused_or_warned_of() -> None:
    class Unknown(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sin()

    damaged = nn.BatchNorm2d(8)
    damaged.running_var.fill_(math.nan)  # type: ignore[union-attr]
    first = randomize_norms(nn.BatchNorm2d(8))
    with pytest.raises(ConversionError, match="NaN"):
        convert(nn.Sequential(first, damaged))
    model = convert(nn.Sequential(first, Unknown(8), damaged, nn.BatchNorm2d(8)), first_only=True)  # the last is new
    assert [type(module) is ILMNorm for module in model] == [True, False, False, False]
    with pytest.raises(ConversionError, match="NaN"):
        convert(nn.Sequential(damaged, first), first_only=True)
    with pytest.warns(NormsLeftBehind):  # it isn't the first that is converted
        convert(nn.Sequential(Unknown(8), first), first_only=True)


def test_converting_twice_says_so() -> None:
    once = convert(randomize_norms(timm.create_model("test_resnet")))
    with pytest.warns(UserWarning, match="nothing to do"):
        twice = convert(once)
    x = torch.randn(1, 3, 64, 64)
    assert twice is not once
    assert torch.equal(twice(x), once(x))
    with pytest.warns(UserWarning, match="nothing to do"):
        assert convert(once, inplace=True) is once


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "the model holds: no norm layer"),
        (nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2)), r"holds: 2 LayerNorm \(normalises over the channels"),
        (nn.Sequential(nn.LazyBatchNorm2d()), "not initialised yet"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "no running statistics"),
        (nn.DataParallel(nn.BatchNorm2d(2)), r"convert model\.module"),
        (nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(2)), "remove_parametrizations"),
        (nn.Identity(), "no norm layer"),
    ],
    ids=lambda p: p[:20] if isinstance(p, str) else "",
)
def test_what_cannot_be_converted_is_refused_with_the_cure(model: nn.Module, match: str) -> None:
    before = str(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inplace in (False, True):
            with pytest.raises(ConversionError, match=match):
                convert(model, inplace=inplace)
    assert str(model) == before


@pytest.mark.filterwarnings("ignore:1 norm layer stays")
def test_a_model_that_is_initialised_in_part_is_refused_with_the_cure() -> None:
    model = nn.Sequential(randomize_norms(nn.BatchNorm2d(4)), nn.LazyBatchNorm2d())
    with pytest.raises(ConversionError, match=r"^the model isn't initialised yet: run one batch through it first$"):
        convert(model)
    model(torch.randn(2, 4, 5, 5))
    assert isinstance(convert(model)[0], ilmconvert.ILMNorm)


def test_compiled_and_scripted_models_are_refused() -> None:
    model = randomize_norms(nn.Sequential(nn.BatchNorm2d(2))).eval()
    with pytest.raises(ConversionError, match="_orig_mod"):
        convert(torch.compile(model))
    in_place = copy.deepcopy(model)
    in_place.compile()
    with pytest.raises(ConversionError, match=r"before calling \.compile"):
        convert(in_place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    with pytest.raises(ConversionError, match=r"before torch\.jit\.trace"):
        convert(scripted)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("running_mean", float("nan"), "NaN or infinity"),
        ("running_var", float("inf"), "NaN or infinity"),
        ("running_var", -0.5, "negative"),
    ],
)
def test_damaged_statistics_are_errors(name: str, value: float, match: str) -> None:
    source = randomize_norms(timm.create_model("test_resnet"))
    getattr(source.layer1[0].bn1, name)[3] = value
    before = {n: type(m) for n, m in source.named_modules()}
    with pytest.raises(ConversionError, match=rf"layer1.0.bn1 \(BatchNorm2d\): .*{match}"):
        convert(source, inplace=True)
    assert before == {n: type(m) for n, m in source.named_modules()}
    assert [e.name for e in plan(source).errors] == ["layer1.0.bn1"]
    convert(source, exclude="layer1.0.bn1")


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("to", TARGETS)
def test_a_variance_slightly_below_zero_computes_what_the_source_does(to: str, eps: float) -> None:
    """Old checkpoints of detectron2 hold such values; var + eps is what counts."""
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(8, eps=eps))).eval()
    source[0].running_var[2] = -0.4 * eps
    source[0].running_var[4:] = -0.9 * eps
    x = torch.randn(2, 8, 5, 5)
    converted = convert(source, to)
    assert all(t.isfinite().all() for t in converted.state_dict().values())
    assert relative_error(converted(x), source(x)) <= 1e-5
    source[0].running_var[2] = -eps
    with pytest.raises(ConversionError, match="negative by eps or more"):
        convert(source, to)


def test_untrained_statistics_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="15 BatchNorm layers were never trained"):
        convert(timm.create_model("test_resnet"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"to": "bn"}, "to='bn' isn't one of 'ilm_gn', 'ilm_ln', 'ilm_in', 'gn', 'ln', 'in'"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"to": "ilm_ln", "num_groups": 8}, "only applies to 'ilm_gn'"),
        ({"restore_bound": 0.0}, "restore_bound=0.0"),
        ({"restore_bound": 1.0, "init": "moments"}, "needs init='identity'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        convert(nn.BatchNorm2d(8), **arguments)


def test_number_of_groups_is_an_upper_bound() -> None:
    source = randomize_norms(nn.ModuleList([nn.BatchNorm2d(c) for c in (64, 20, 7)]))
    assert [m.num_groups for m in convert(source, num_groups=8)] == [8, 5, 1]
    assert [m.key_group_size for m in convert(source, key_group_size=4)] == [4, 4, 1]


class Custom(nn.BatchNorm2d):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_unknown_subclass_is_reported_until_it_is_registered() -> None:
    source = randomize_norms(nn.Sequential(nn.BatchNorm2d(8), Custom(8))).eval()
    (skipped,) = plan(source).skipped
    assert skipped.name == "1"
    assert "subclass of BatchNorm2d" in skipped.reason
    assert "register_source(Custom" in skipped.reason
    with pytest.warns(NormsLeftBehind, match=r"1 norm layer stays .*: 1 \(Custom\)"):
        assert isinstance(convert(source)[1], Custom)

    def describe(m: Custom) -> NormDescription:
        return NormDescription(8, m.eps, 2 * m.weight, 2 * m.bias, m.running_mean, m.running_var)

    ilmconvert.register_source(Custom, describe)
    try:
        x = torch.randn(2, 8, 3, 3)
        assert relative_error(convert(source)(x), source(x)) <= 1e-5
        assert not plan(source).skipped
    finally:
        ilmconvert.surgery.sources._registered.pop(Custom)


def test_plan_reads_only_and_reports_everything() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(8), nn.Sequential(nn.GroupNorm(2, 8), nn.RMSNorm(8)))
    before = str(model)
    the_plan = plan(model)
    assert str(model) == before
    assert [(e.name, e.target is None) for e in the_plan] == [("0", False), ("1", True), ("2.0", False), ("2.1", True)]
    data = the_plan.to_dict()
    assert data["entries"][2]["target"]["num_groups"] == 2
    assert data["settings"]["to"] == "ilm_gn"
    table = str(the_plan)
    assert "2 to convert, 2 skipped, 0 refused" in table
    assert "keeps its own groups" in table


def test_split_batch_norm_is_skipped_whole() -> None:
    from timm.layers import convert_splitbn_model

    model = convert_splitbn_model(timm.create_model("test_resnet"), 2)
    assert {e.reason.split(":")[0] for e in plan(model)} == {"a subclass of BatchNorm2d that nobody registered"}


def test_lost_activation_of_torchs_own_converter_is_noted() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(randomize_norms(timm.create_model("test_efficientnet")))
    assert "act were never called" in plan(model).converted[0].note


def test_meta_device_models_convert() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    converted = convert(model, "ilm_in")
    assert all(t.is_meta for t in converted.state_dict().values())
    assert sum(isinstance(m, ILMNorm) for m in converted.modules()) == 53


def test_conversion_is_deterministic_and_leaves_the_generator_alone() -> None:
    source = randomize_norms(timm.create_model("test_resnet"))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = convert(source).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = convert(source).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_encoder_units_are_alive_and_learn() -> None:
    source = randomize_norms(timm.create_model("test_resnet")).eval()
    converted = convert(source)
    converted(torch.randn(4, 3, 64, 64)).square().sum().backward()
    decoders = [p.grad for n, p in converted.named_parameters() if n.endswith("weight_decoder")]
    assert len(decoders) == 15
    assert all((g.abs().amax(0) > 0).all() for g in decoders)


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, ilmconvert; print({m for m in ('timm', 'torchvision', 'click', 'rich') if m in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


class TestAPlan:
    def source(self) -> nn.Module:
        return randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GroupNorm(4, 16))).eval()

    def test_it_is_carried_out_as_it_is(self) -> None:
        source, x = self.source(), torch.randn(2, 3, 8, 8)
        the_plan = ilmconvert.plan(source, "ilm_ln", exclude="2", key_group_size=8)
        converted = convert(source, the_plan)
        assert ilmconvert.info(converted).settings == {"to": "ilm_ln", "init": "identity"}
        assert (converted[1].num_groups, converted[1].key_group_size) == (1, 8)
        assert type(converted[2]) is nn.GroupNorm
        assert relative_error(converted(x), source(x)) < 1e-5
        same = convert(source, "ilm_ln", exclude="2", key_group_size=8).state_dict()
        assert all(torch.equal(tensor, same[name]) for name, tensor in converted.state_dict().items())

    def test_another_model_or_a_changed_one_is_refused(self) -> None:
        source = self.source()
        the_plan = ilmconvert.plan(source)
        with pytest.raises(ConversionError, match="'1' is another module there"):
            convert(copy.deepcopy(source), the_plan)
        source.append(nn.BatchNorm2d(16))
        with pytest.raises(ConversionError, match="it lacks '3'"):
            convert(source, the_plan, inplace=True)
        assert type(source[1]) is nn.BatchNorm2d

    def test_settings_beside_it_are_refused(self) -> None:
        source = self.source()
        with pytest.raises(ValueError, match=r"give init, num_groups to ilmconvert\.plan instead"):
            convert(source, ilmconvert.plan(source), init="moments", num_groups=4)
