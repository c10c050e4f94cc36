"""Norms that nobody registered: converted where their values are a formula's, else left as they are and reported."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ilmconvert
from ilmconvert import ConversionError, ILMNorm, NormDescription
from ilmconvert.errors import NormsLeftBehind
from ilmconvert.surgery import left_behind, recognize
from ilmconvert.surgery.sources import recognition
from tests.helpers import relative_error
from tests.surgery import foreign_norms as foreign

C = 12
IMAGE, SOUND, NODES = (2, C, 5, 6), (2, C, 7), (3, C)

# The norm, an input that it takes, and what it is recognised as.
RECOGNISED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "DETR": (lambda: foreign.DetrFrozenBatchNorm(C), IMAGE, "BatchNorm with running statistics, eps 1e-05"),
    "without eps": (lambda: foreign.OldFrozenBatchNorm(C), IMAGE, "BatchNorm with running statistics, eps 0"),
    "detectron2": (lambda: foreign.Detectron2FrozenBatchNorm(C), IMAGE, "BatchNorm with running statistics, eps 3e-05"),
    "mmdetection": (lambda: foreign.MmdetFrozenBatchNorm(C), IMAGE, "BatchNorm with running statistics, eps 1e-05"),
    "one channel": (
        lambda: foreign.MmdetFrozenBatchNorm(1),
        (2, 1, 5, 6),
        "BatchNorm with running statistics, eps 1e-05",
    ),
    "odd eps": (lambda: foreign.Detectron2FrozenBatchNorm(C, 1 / 65536), IMAGE, "eps 1.52588e-05"),
    "InplaceABN": (lambda: foreign.InplaceABN(C, 0.2), IMAGE, "eps 0.001, then LeakyReLU(negative_slope=0.2)"),
    "PoolFormer": (
        lambda: foreign.PoolFormerGroupNorm(C),
        IMAGE,
        "LayerNorm over all channels and positions, eps 1e-05",
    ),
    "BiT": (lambda: foreign.BitGroupNorm(C, nn.ReLU()), IMAGE, "GroupNorm with 4 groups, eps 1e-05, then activation"),
    "BiT, no activation": (lambda: foreign.BitGroupNorm(C), IMAGE, "GroupNorm with 4 groups, eps 1e-05"),
    "BiT, a trained one": (lambda: foreign.BitGroupNorm(C, nn.PReLU(C)), IMAGE, "then activation"),
    "GroupNorm32": (lambda: foreign.GroupNorm32(3, C), IMAGE, "GroupNorm with 3 groups, eps 1e-05, then SiLU()"),
    "of its own": (lambda: foreign.OwnGN(3, C), IMAGE, "GroupNorm with 3 groups, eps 1e-06"),
    "asteroid": (lambda: foreign.GlobLN(C), SOUND, "LayerNorm over all channels and positions, eps 1e-08"),
    "per feature": (lambda: foreign.FeatureNorm(C), SOUND, "InstanceNorm, eps 1e-06"),
    "one node": (lambda: foreign.NodeNorm(C), NODES, "BatchNorm with running statistics, eps 1e-05"),
    "one node, no parameters": (lambda: foreign.NodeNorm(C, affine=False), NODES, "BatchNorm with running statistics"),
}

UNKNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "abs": (lambda: foreign.AbsNorm(C), "not as a BatchNorm does"),
    "clamped": (lambda: foreign.ClampedNorm(C), "not as a BatchNorm does"),
    "eps outside": (lambda: foreign.OutsideNorm(C), "not as a BatchNorm does"),
    "scaled": (lambda: foreign.ScaledNorm(C), "not as a BatchNorm does"),
    "unbiased": (lambda: foreign.UnbiasedGroupNorm(3, C), "outputs are those of no BatchNorm"),
    "batch statistics": (lambda: foreign.BatchStatisticsNorm(C), "outputs are those of no BatchNorm"),
    "odd activation": (lambda: foreign.SaturatedNorm(3, C), "outputs are those of no BatchNorm"),
    "channels last": (lambda: foreign.RunningScaler(C), "takes its channels last"),
    "more inputs": (lambda: foreign.GraphNorm(C), r"takes more than one input \(batch\)"),
    "held elsewhere": (lambda: foreign.HeldElsewhere(C), "holds a module that isn't registered"),
}


def telling(module: nn.Module) -> nn.Module:
    """Random values of every vector, variances positive; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if t.is_floating_point():
                values = torch.rand(t.shape, generator=generator) * 2 + 0.3
                t.copy_(values if "var" in name else values * torch.randn(t.shape, generator=generator).sign())
    return module.eval()


OF_THE_INSTANCE = (
    "PoolFormer",
    "BiT",
    "BiT, no activation",
    "BiT, a trained one",
    "GroupNorm32",
    "of its own",
    "asteroid",
    "per feature",
)


@pytest.mark.parametrize(
    ("name", "to"),
    [(name, to) for name in RECOGNISED for to in ("ilm_gn", "ilm_in") if to == "ilm_gn" or name not in OF_THE_INSTANCE],
)
def test_what_its_values_show_is_converted(name: str, to: str, tmp_path: Path) -> None:
    build, shape, what = RECOGNISED[name]
    source = telling(nn.Sequential(build()))
    before = copy.deepcopy(source.state_dict())
    random_state = torch.get_rng_state()
    (entry,) = ilmconvert.plan(source, to)
    assert entry.note.startswith("recognised by its values as ")
    assert what in entry.note
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(t, before[k]) for k, t in source.state_dict().items())
    converted = ilmconvert.convert(source, to)
    assert isinstance(converted[0], ILMNorm)
    for batch in (shape, (1, *shape[1:])):
        x = torch.randn(batch) * 2 + 0.5
        assert relative_error(converted(x), source(x)) <= 1e-5
    ilmconvert.save(converted, tmp_path / "model.safetensors")
    loaded = ilmconvert.load(tmp_path / "model.safetensors", into=nn.Sequential(build())).eval()
    assert torch.equal(loaded(x), converted(x))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_its_values_do_not_show_stays_and_is_said(name: str) -> None:
    build, reason = UNKNOWN[name]
    source = telling(nn.Sequential(nn.BatchNorm2d(C), build()))
    with pytest.warns(NormsLeftBehind, match=f"1 norm layer stays .*{reason}"):
        converted = ilmconvert.convert(source)
    assert type(converted[1]) is type(source[1])
    assert list(left_behind(converted)) == ["1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ilmconvert.convert(source, exclude="1")


@pytest.mark.parametrize("build", [foreign.PositionNorm, foreign.LastAxisNorm, nn.LayerNorm, nn.RMSNorm])
def test_known_layers_without_a_batch_stay_without_a_warning(build: type[nn.Module]) -> None:
    source = telling(nn.Sequential(nn.BatchNorm2d(C), build(C)))
    converted = ilmconvert.convert(source)
    assert type(converted[1]) is build
    assert ilmconvert.plan(source).skipped[0].reason
    assert not left_behind(converted)


def test_a_wrapper_stays_where_its_norm_can_go() -> None:
    source = telling(nn.ModuleList([foreign.NodeNorm(C, single=False), foreign.SpeechNorm(C)]))
    assert [e.name for e in ilmconvert.plan(source).converted] == ["0.module", "1.norm"]
    converted = ilmconvert.convert(source)
    nodes, sound = torch.randn(3, C), torch.randn(2, 9, C)
    assert relative_error(converted[0](nodes), source[0](nodes)) <= 1e-5
    assert relative_error(converted[1](sound), source[1](sound)) <= 1e-5


def test_parameters_of_another_shape_train_on() -> None:
    source = telling(nn.Sequential(foreign.FeatureNorm(C)))
    source[0].offset.requires_grad_(False)
    with torch.no_grad():
        layer = ilmconvert.convert(source)[0]
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_every_layer_gets_an_activation_of_its_own() -> None:
    converted = ilmconvert.convert(telling(nn.Sequential(foreign.InplaceABN(C), foreign.InplaceABN(C))))
    assert converted[0].act is not converted[1].act


def test_settings_that_differ_are_told_apart() -> None:
    eps = [recognition(foreign.Detectron2FrozenBatchNorm(C, e)).formula.eps for e in (1e-5, 1e-3, 0.0)]
    assert eps == [1e-5, 1e-3, 0.0]
    slopes = [recognition(foreign.InplaceABN(C, s)).formula.stock_act.negative_slope for s in (0.1, 0.3)]
    assert slopes == [0.1, 0.3]


def test_one_look_per_class_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = recognize._examine
    monkeypatch.setattr(recognize, "_examined", type(recognize._examined)())
    monkeypatch.setattr(recognize, "_examine", lambda *args: calls.append(args) or whole(*args))
    ilmconvert.convert(telling(nn.Sequential(*(foreign.DetrFrozenBatchNorm(C) for _ in range(50)))))
    assert len(calls) == 1


def test_hooks_of_the_model_see_nothing_of_the_look() -> None:
    source = telling(nn.Sequential(foreign.MmdetFrozenBatchNorm(C)))
    calls: list[Tensor] = []
    source[0].register_forward_hook(lambda module, args, y: calls.append(y))
    source[0].register_forward_pre_hook(lambda module, args: calls.append(args))
    ilmconvert.convert(source)
    assert not calls


def test_models_on_the_meta_device_are_looked_at_too() -> None:
    with torch.device("meta"):
        source = nn.Sequential(foreign.DetrFrozenBatchNorm(C), foreign.BitGroupNorm(C, nn.ReLU()))
    assert len(ilmconvert.plan(source).converted) == 2


def test_a_description_that_raises_names_its_class() -> None:
    class Broken(nn.BatchNorm2d):
        pass

    source = telling(nn.Sequential(Broken(C)))
    for describe, message in (
        (lambda m: m.no_such_thing, "the description of Broken raised AttributeError: "),
        (lambda m: m.weight, "the description of Broken returned a Parameter"),
        (lambda m: NormDescription(C, m.eps, m.weight[:3]), r"Broken has 12 channels and weight \(3,\)"),
    ):
        ilmconvert.register_source(Broken, describe)
        with pytest.raises(ConversionError, match=message) as caught:
            ilmconvert.convert(source)
        assert "\n" not in str(caught.value)
    assert type(source[0]) is Broken


def test_layers_that_stay_are_counted() -> None:
    source = telling(nn.Sequential(nn.BatchNorm2d(C), *(foreign.AbsNorm(C) for _ in range(5))))
    with pytest.warns(NormsLeftBehind, match=r"5 norm layers stay .*: 1 \(AbsNorm\), 2 \(AbsNorm\), 3 .* and 2 more"):
        ilmconvert.convert(source)
