"""Every class of norm comes back as itself, with its values, whatever its sizes, dtype and target; property-tested."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import norm, norm_act
from timm.models.metaformer import GroupNorm1NoBias
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ilmconvert import ConversionError, ILMNorm, convert, load, save, undo
from ilmconvert.surgery.sources import _BUILTIN
from ilmconvert.surgery.stock_norms import _ARGUMENTS
from tests.helpers import TOLERANCE, randomize_norms, relative_error

Make = Callable[[int, float, bool], nn.Module]

# class by class: channels, eps, whether it has gamma and beta; and the dimensions of its input
KINDS: dict[str, tuple[Make, int]] = {
    "BatchNorm1d": (lambda c, e, a: nn.BatchNorm1d(c, e, affine=a), 3),
    "BatchNorm2d": (lambda c, e, a: nn.BatchNorm2d(c, e, affine=a), 4),
    "BatchNorm3d": (lambda c, e, a: nn.BatchNorm3d(c, e, affine=a), 5),
    "SyncBatchNorm": (lambda c, e, a: nn.SyncBatchNorm(c, e, affine=a), 4),
    "InstanceNorm1d": (lambda c, e, a: nn.InstanceNorm1d(c, e, affine=a), 3),
    "InstanceNorm2d": (lambda c, e, a: nn.InstanceNorm2d(c, e, affine=a), 4),
    "InstanceNorm3d": (lambda c, e, a: nn.InstanceNorm3d(c, e, affine=a), 5),
    "tracking": (lambda c, e, a: nn.InstanceNorm2d(c, e, affine=a, track_running_stats=True), 4),
    "GroupNorm": (lambda c, e, a: nn.GroupNorm(c // 2, c, e, affine=a), 4),
    "FrozenBatchNorm2d": (lambda c, e, a: FrozenBatchNorm2d(c, e), 4),
    "BatchNormAct2d": (lambda c, e, a: norm_act.BatchNormAct2d(c, e, affine=a, act_layer=nn.SiLU), 4),
    "FrozenBatchNormAct2d": (lambda c, e, a: norm_act.FrozenBatchNormAct2d(c, e, act_layer=nn.PReLU), 4),
    "GroupNormAct": (lambda c, e, a: norm_act.GroupNormAct(c, c // 2, e, affine=a, act_layer=nn.SiLU), 4),
    "GroupNorm1Act": (lambda c, e, a: norm_act.GroupNorm1Act(c, e, affine=a), 4),
    "timm GroupNorm": (lambda c, e, a: norm.GroupNorm(c, c // 2, e, affine=a), 4),
    "GroupNorm1": (lambda c, e, a: norm.GroupNorm1(c, eps=e, affine=a), 4),
    "GroupNorm1NoBias": (lambda c, e, a: GroupNorm1NoBias(c, eps=e), 4),
}
SIZES = {3: (9,), 4: (4, 5), 5: (3, 2, 4)}


class Scale(nn.Module):
    """Tells the model's dtype where the norm has no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def sources(kind: str, channels: int, eps: float, affine: bool, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(channels)
    made = nn.Sequential(KINDS[kind][0](channels, eps, affine), Scale())
    return randomize_norms(made, seed=channels).eval().to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@given(
    channels=st.sampled_from([2, 6, 16, 48, 62]),
    eps=st.sampled_from([1e-5, 1e-3, 0.5]),
    affine=st.booleans(),
    to=st.sampled_from(["ilm_gn", "ilm_ln", "ilm_in"]),
    dtype=st.sampled_from([*TOLERANCE]),
    trained=st.booleans(),
)
def test_what_comes_back_is_of_the_class_and_computes_the_same(
    kind: str, channels: int, eps: float, affine: bool, to: str, dtype: torch.dtype, trained: bool
) -> None:
    source = sources(kind, channels, eps, affine, dtype)
    instance = not any("running" in name for name, _ in source.named_buffers())
    converted = convert(source, "ilm_gn" if instance else to)
    if trained:
        with torch.no_grad():
            converted[0].bias += torch.linspace(-1, 1, channels, dtype=dtype)
    back = undo(converted)
    assert not any(isinstance(m, ILMNorm) for m in back.modules())
    x = torch.randn(3, channels, *SIZES[KINDS[kind][1]], dtype=dtype) * 3 + 1
    assert relative_error(back(x), converted(x)) <= 3 * TOLERANCE[dtype]
    assert trained or relative_error(back(x), source(x)) <= 3 * TOLERANCE[dtype]
    without_place = trained and instance and (kind == "GroupNorm1NoBias" or not source[0].affine)
    if not without_place:
        assert type(back[0]) is type(source[0])
        assert back.state_dict().keys() == source.state_dict().keys()
        assert all(back.state_dict()[key].dtype == t.dtype for key, t in source.state_dict().items())
        assert repr(back) == repr(source)


@pytest.mark.parametrize("kind", KINDS)
@given(channels=st.sampled_from([6, 16, 62]), affine=st.booleans(), dtype=st.sampled_from([*TOLERANCE]))
def test_with_the_source_its_values_come_back_to_the_last_bit(
    kind: str, channels: int, affine: bool, dtype: torch.dtype
) -> None:
    source = sources(kind, channels, 1e-5, affine, dtype)
    back = undo(convert(source), source)
    expected = source.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[key]) for key, t in back.state_dict().items())
    assert all(back.state_dict()[key].data_ptr() != t.data_ptr() for key, t in expected.items() if t.numel())


def test_a_trained_beta_keeps_the_statistics_of_the_source() -> None:
    source = sources("BatchNorm2d", 16, 1e-5, True, torch.float32)
    converted = convert(source)
    with torch.no_grad():
        converted[0].bias += 0.25
    back = undo(converted, source)
    for name in ("weight", "running_mean", "running_var"):
        assert torch.equal(getattr(back[0], name), getattr(source[0], name))
    torch.testing.assert_close(back[0].bias, source[0].bias + 0.25)
    x = torch.randn(2, 16, 4, 4)
    assert relative_error(back(x), converted(x)) <= TOLERANCE[torch.float32]


def test_a_layer_that_is_only_near_its_source_is_not_taken_for_it() -> None:
    source = sources("BatchNorm2d", 16, 1e-5, True, torch.float64)
    converted = convert(source)
    with torch.no_grad():
        for name in ("weight", "restore_weight", "restore_bias"):
            getattr(converted[0], name).mul_(1 + 1e-6)
    back = undo(converted, source)
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert relative_error(back(x), converted(x)) <= TOLERANCE[torch.float64]
    assert relative_error(back(x), source(x)) > 1e-8


def test_every_class_that_converts_can_come_back() -> None:
    assert _ARGUMENTS.keys() == _BUILTIN.keys()


def test_parameters_that_go_on_stay_tied_and_keep_what_hangs_on_them() -> None:
    model = randomize_norms(nn.Sequential(nn.GroupNorm(4, 8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8))).eval()
    model[1].weight = model[0].weight
    converted = convert(model)
    converted[0].weight.lr_mult = 0.5
    converted[2].bias.lr_mult = 0.25
    converted[2].bias.requires_grad_(False)
    back = undo(converted)
    assert back[0].weight is back[1].weight
    assert back[0].weight is not converted[0].weight
    assert (back[0].weight.lr_mult, back[2].bias.lr_mult) == (0.5, 0.25)
    assert [p.requires_grad for p in (back[2].weight, back[2].bias)] == [True, False]


def test_flags_of_fused_modules_stay_their_own() -> None:
    source = nn.Sequential(norm_act.BatchNormAct2d(8, act_layer=nn.RReLU))
    converted = convert(randomize_norms(source)).train()
    converted[0].act.eval()
    back = undo(converted)
    assert (back[0].training, back[0].act.training) == (True, False)


def test_through_a_checkpoint_into_a_custom_model(tmp_path: object) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16), nn.ReLU())

    source = randomize_norms(build()).eval()
    file = f"{tmp_path}/c.safetensors"
    save(convert(source), file)
    back = undo(load(file, into=build()).eval())
    x = torch.randn(2, 3, 12)
    assert type(back[1]) is nn.BatchNorm1d
    assert relative_error(back(x), source(x)) <= TOLERANCE[torch.float32]
    stream = io.BytesIO()
    torch.save(convert(source), stream)
    stream.seek(0)
    assert type(undo(torch.load(stream, weights_only=False))[1]) is nn.BatchNorm1d


class Own(nn.BatchNorm2d):
    """A class of one's own, which computes what its base does."""


def test_a_class_of_ones_own_becomes_torchs_layer_or_what_the_source_has() -> None:
    source = randomize_norms(nn.Sequential(Own(8))).eval()
    converted = convert(source)
    assert type(undo(converted)[0]) is nn.BatchNorm2d
    assert type(undo(converted, nn.Sequential(Own(8)))[0]) is Own


def test_a_trained_norm_without_place_for_it_is_refused_with_its_source() -> None:
    source = sources("GroupNorm1NoBias", 8, 1e-5, True, torch.float32)
    converted = convert(source)
    with torch.no_grad():
        converted[0].bias += 1
    with pytest.raises(ConversionError, match="no gamma and beta"):
        undo(converted, source)
    assert type(undo(converted)[0]) is nn.GroupNorm


def test_layers_that_trained_stay_and_the_rest_comes_back_in_a_real_network() -> None:
    torch.manual_seed(0)
    source = randomize_norms(timm.create_model("test_resnet"), scale=0.5).eval()
    converted = convert(source)
    frozen = [m for name, m in converted.named_modules() if isinstance(m, ILMNorm) and "layer4" not in name]
    for layer in frozen:
        layer.requires_grad_(False)
    converted.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    torch.optim.SGD([p for p in converted.parameters() if p.requires_grad], lr=0.1).step()
    converted.eval()
    with pytest.raises(ConversionError, match=r"layers equal no plain norm any more, first layer4\.0\."):
        undo(converted)
    with pytest.warns(UserWarning, match="they stay"):
        back = undo(converted, partial=True)
    stay = {name for name, m in back.named_modules() if isinstance(m, ILMNorm)}
    assert stay == {name for name, m in converted.named_modules() if isinstance(m, ILMNorm) and "layer4" in name}
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(back(x), converted(x)) <= TOLERANCE[torch.float32]
    assert relative_error(back(x), source(x)) > 1e-3
