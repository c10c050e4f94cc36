"""A norm is replaced wherever the model holds it, or the conversion is refused before anything changes."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict, deque
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import ilmconvert
from ilmconvert import CheckpointError, ConversionError, ILMNorm, convert, plan
from ilmconvert.calibration.collapse import collapse
from ilmconvert.errors import NormsLeftBehind
from ilmconvert.evaluation import reconstruct_source
from ilmconvert.export.fold import fold
from ilmconvert.finetune.anneal import restoring_parameters, without_restoring
from ilmconvert.surgery import references as search
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline
from ilmconvert.surgery.replacement import copy_with, replace_modules
from tests.helpers import randomize_norms, relative_error
from tests.surgery.holders import CHANNELS, HOLDERS, Holding, closing_over, holding

X = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def checked(model: nn.Module, kind: type[nn.Module], expected: torch.Tensor) -> None:
    """One new layer stands in every place, it computes what it should, and its parameters get gradients."""
    assert isinstance(model, Holding)
    assert type(model.norm) is kind
    assert model.held is model.norm
    y = model(X)
    assert relative_error(y, expected) <= 1e-5
    y.square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.endswith("encoder"))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", HOLDERS)
def test_convert(name: str, inplace: bool) -> None:
    source = randomize_norms(holding(name))
    expected, norm = source(X).detach(), source.norm
    converted = convert(source, inplace=inplace)
    assert (converted is source) == inplace
    checked(converted, ILMNorm, expected)
    if not inplace:
        assert source.norm is source.held is norm
        assert torch.equal(source(X), expected)


@pytest.mark.parametrize("name", HOLDERS)
def test_load_into(name: str, tmp_path: Path) -> None:
    source = randomize_norms(holding(name))
    ilmconvert.save(convert(source), tmp_path / "m.safetensors")
    base = holding(name)
    assert ilmconvert.load(tmp_path / "m.safetensors", into=base) is base
    checked(base, ILMNorm, source(X).detach())


@pytest.mark.parametrize("name", HOLDERS)
def test_the_layers_of_later_steps(name: str) -> None:
    """What anneals, collapses, folds or rebuilds a converted network puts its layers everywhere, too."""
    source = randomize_norms(holding(name))
    converted = convert(source)
    assert relative_error(fold(converted)(X), source(X)) <= 1e-5
    assert relative_error(reconstruct_source(converted)(X), source(X)) <= 1e-5
    paper = convert(source, init="moments")
    plain = collapse(paper).model
    assert isinstance(plain.norm, nn.GroupNorm)
    assert plain.held is plain.norm
    assert relative_error(plain(X), paper(X)) <= 1e-5
    usual = group_norm_baseline(source)
    assert usual.held is usual.norm
    with torch.no_grad():
        for parameter in restoring_parameters(converted):
            parameter.zero_()
    expected = converted(X).detach()
    annealed = without_restoring(converted)
    assert not annealed.norm.restore
    assert annealed.held is annealed.norm
    assert relative_error(annealed(X), expected) <= 1e-6


@pytest.mark.parametrize("name", HOLDERS)
def test_a_norm_that_is_registered_nowhere_is_named(name: str) -> None:
    hold, _, path = HOLDERS[name]
    source = randomize_norms(nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))).eval()
    source.block = nn.Identity()
    source.block.__dict__["held"] = hold(nn.BatchNorm2d(CHANNELS))
    (loose,) = plan(source).skipped
    assert (loose.name, loose.registered, loose.left_behind) == (path, False, True)
    with pytest.warns(NormsLeftBehind, match="1 norm layer stays .*; no module registers it") as found:
        converted = convert(source, plan(source))
    assert f"{path} (BatchNorm2d)" in str(found[0].message)
    assert isinstance(converted[1], ILMNorm)
    assert plan(source, exclude=f"{path.partition('[')[0]}*").skipped[0].left_behind is False


def test_a_network_whose_norms_are_all_registered_nowhere() -> None:
    source = nn.Identity()
    source.norms = [nn.BatchNorm2d(3), (nn.BatchNorm2d(3),)]
    with pytest.raises(ConversionError, match=r"the model holds: 2 BatchNorm2d \(no module registers it"):
        convert(source)


def refused(source: nn.Module, match: str, **arguments: Any) -> None:
    """The conversion is refused, and every module stays where it is."""
    before = dict(source.named_modules())
    with pytest.raises(ConversionError, match=match):
        convert(source, **arguments)
    assert before == dict(source.named_modules())
    assert isinstance(source.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_place_that_cannot_be_written_is_a_refusal(inplace: bool) -> None:
    source = randomize_norms(holding("attribute"))
    source.block.__dict__["held"] = closing_over(source.norm)
    refused(source, r"can't convert norm .*: block\.held \(a function that uses norm\) holds it", inplace=inplace)
    source.block.__dict__["held"] = source.norm.forward
    refused(source, r"block\.held \(a bound method\) holds it", inplace=inplace)
    source.block.__dict__["held"] = [lambda x, norm=source.norm: norm(x)]
    refused(source, r"block\.held\[0\] \(a default of a function\) holds it", inplace=inplace)


NORM = randomize_norms(nn.BatchNorm2d(CHANNELS)).eval()


class OfItsClass(nn.Module):
    norms = (1, NORM)

    def __init__(self) -> None:
        super().__init__()
        self.norm = NORM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).norms[1](x)


class OfAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = NORM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([NORM(part) for part in x.split(1)])


class OnlyInTheConstructor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = NORM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("model", "path"),
    [
        (OfItsClass, r"norms \(of the class OfItsClass\)\[1\]"),
        (OfAGlobal, r"forward \(a function that uses the global NORM\)"),
    ],
)
def test_what_other_models_share_is_a_refusal(model: type[nn.Module], path: str, inplace: bool) -> None:
    refused(model(), rf"can't convert norm \(BatchNorm2d\): {path} holds it", inplace=inplace)
    assert isinstance(convert(OnlyInTheConstructor(), inplace=inplace).norm, ILMNorm)


def test_the_search_passes_empty_dicts_of_hooks_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("resnet18")
    looked_into: list[type] = []
    inside = search._inside
    monkeypatch.setattr(search, "_inside", lambda visit: looked_into.append(type(visit.value)) or inside(visit))
    assert len(list(search.references(model, lambda module: isinstance(module, nn.BatchNorm2d)))) == 20
    assert OrderedDict not in looked_into
    model.bn1.register_forward_hook(lambda module, args, y: None)
    list(search.references(model, lambda module: False))
    assert looked_into.count(OrderedDict) == 1


def test_a_hook_that_refers_to_its_own_module_is_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), randomize_norms(nn.BatchNorm2d(8))).eval()
    model[1].register_load_state_dict_pre_hook(lambda module, *_: None)
    assert isinstance(convert(model)[1], ILMNorm)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_weak_reference_is_a_refusal(inplace: bool) -> None:
    """A copy would go on with the norm of its source; in place, with none."""
    source = randomize_norms(holding("attribute"))
    source.block.__dict__["held"] = weakref.ref(source.norm)
    refused(source, r"block\.held \(a weak reference\) holds it", inplace=inplace)
    source.block.__dict__["held"] = [weakref.proxy(source.norm)]
    refused(source, r"block\.held\[0\] \(a weak reference\) holds it", inplace=inplace)
    # Of what has gone, and of what holds the norm: the usual reference to a parent.
    gone = nn.BatchNorm2d(CHANNELS)
    held = {"held": weakref.ref(gone), "parent": weakref.ref(source)}
    source.block.__dict__.update(held, whole=weakref.proxy(source))
    del gone, held
    gc.collect()
    assert isinstance(convert(source, inplace=inplace).norm, ILMNorm)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_that_hangs_on_a_parameter(inplace: bool) -> None:
    source = randomize_norms(Holding(lambda norm: None, lambda held: None)).eval()
    source.conv.weight.norm = source.norm
    expected = source.norm(source.conv(X)).detach()
    converted = convert(source, inplace=inplace)
    converted.__dict__["take"] = lambda held: converted.conv.weight.norm
    checked(converted, ILMNorm, expected)


def test_a_read_only_dict() -> None:
    source = randomize_norms(Holding(lambda norm: MappingProxyType({"n": norm}), lambda held: held["n"])).eval()
    expected = source(X).detach()
    checked(convert(source, inplace=True), ILMNorm, expected)


def test_an_array_of_objects_is_a_refusal() -> None:
    source = randomize_norms(holding("attribute"))
    source.block.__dict__["held"] = np.array([None, source.norm], dtype=object)
    refused(source, r"block\.held \(an array\) holds it")
    source.block.__dict__["held"] = np.arange(3)
    assert isinstance(convert(source).norm, ILMNorm)


def test_what_another_models_globals_hold_is_no_part_of_this_one() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = randomize_norms(nn.BatchNorm2d(CHANNELS))

        def loss(self, x: torch.Tensor) -> torch.Tensor:
            return (self.own(x) - TEACHER(x)).square().mean()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.own(x)

    assert [entry.name for entry in plan(Student())] == ["own"]


TEACHER = nn.Sequential(nn.BatchNorm2d(CHANNELS))


def test_a_copy_that_would_use_the_models_own_norm_is_a_refusal() -> None:
    source = randomize_norms(holding("attribute"))
    block, expected = source, source(X).detach()
    source.conv.register_forward_hook(lambda module, args, y: y + 0 * block.norm(y))
    with pytest.raises(ConversionError, match=r"a copy would still use the BatchNorm2d .*: use inplace=True"):
        convert(source)
    assert relative_error(convert(source, inplace=True)(X), expected) <= 1e-5


def test_load_into_a_place_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    source = randomize_norms(holding("attribute"))
    ilmconvert.save(convert(source), tmp_path / "m.safetensors")
    source.block.__dict__["held"] = closing_over(source.norm)
    with pytest.raises(CheckpointError, match=r"a function that uses norm\) holds a BatchNorm2d"):
        ilmconvert.load(tmp_path / "m.safetensors", into=source)
    assert isinstance(source.norm, nn.BatchNorm2d)
    assert not any(p.is_meta for p in source.parameters())


@pytest.mark.parametrize("name", HOLDERS)
def test_a_failing_load_leaves_every_holder_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = randomize_norms(holding(name))
    ilmconvert.save(convert(source), tmp_path / "m.safetensors")
    expected, norm = source(X).detach(), source.norm

    def fail(model: nn.Module, state: Any) -> None:
        assert isinstance(source.held, ILMNorm)
        raise ValueError("no")

    monkeypatch.setattr("ilmconvert.checkpoint.restore.put_state", fail)
    with pytest.raises(CheckpointError, match="no"):
        ilmconvert.load(tmp_path / "m.safetensors", into=source)
    assert source.norm is source.held is norm
    assert torch.equal(source(X), expected)


class Refusing(deque[Any]):
    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, ILMNorm):
            raise RuntimeError("nothing can be written here")
        super().__setitem__(index, value)


def test_a_failing_write_is_undone() -> None:
    source = holding("list")
    norm = source.norm
    source.block.last = Refusing([norm])
    with pytest.raises(RuntimeError, match="nothing can be written here"):
        convert(randomize_norms(source), inplace=True)
    assert source.norm is source.held is source.block.last[0] is norm


def test_a_module_that_the_model_does_not_hold_is_refused() -> None:
    source = holding("list")
    norm = source.norm
    with pytest.raises(ConversionError, match="doesn't hold 1 of the modules"):
        replace_modules(source, {norm: nn.Identity(), nn.ReLU(): nn.ReLU()})
    assert source.norm is source.held is norm


def test_what_holds_the_model_is_left_alone() -> None:
    """A trainer, a wrapper: they may hold it in any number of ways, and other networks beside it."""
    source = randomize_norms(holding("attribute"))
    around = nn.Sequential(source, nn.BatchNorm2d(CHANNELS))
    source.__dict__["owner"] = around
    assert [entry.name for entry in plan(source)] == ["norm"]
    convert(source, inplace=True)
    assert isinstance(around[1], nn.BatchNorm2d)


def test_a_model_with_a_copy_method_of_its_own() -> None:
    class Rebuilt(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            new = Rebuilt(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
            new.load_state_dict(self.state_dict())
            return new.train(self.training)

    class Shared(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            return Shared(*self)

    source = randomize_norms(Rebuilt(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))).eval()
    assert relative_error(convert(source)(X), source(X)) <= 1e-5
    shared = Shared(*source)
    with pytest.raises(ConversionError, match="use inplace=True"):
        convert(shared)
    assert isinstance(shared[1], nn.BatchNorm2d)


def test_torchs_older_weight_norm_is_copied() -> None:
    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv2d(3, 8, 1))
    source = randomize_norms(nn.Sequential(conv, nn.BatchNorm2d(8))).eval()
    source(X)
    assert relative_error(convert(source)(X), source(X)) <= 1e-5


def test_traced_networks() -> None:
    source = randomize_norms(timm.create_model("test_resnet")).eval()
    traced, x = torch.fx.symbolic_trace(source), torch.randn(1, 3, 64, 64)
    for inplace in (False, True):
        converted = convert(copy.deepcopy(traced), inplace=inplace)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())
        assert relative_error(converted(x), source(x)) <= 1e-5


def test_copy_with_leaves_the_source_alone() -> None:
    source = holding("list")
    result = copy_with(source, {"norm": source.norm}, lambda old, copied: nn.Sequential(copied))
    assert result.norm is result.held
    assert result.norm[0] is not source.norm
    assert source.norm is source.held
