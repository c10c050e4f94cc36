"""The reference values are constants: whatever trains, averages or moves a model leaves their values alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from opacus.grad_sample import GradSampleModule
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call

from ilmconvert import ILMNorm, convert, load, save
from ilmconvert.models.create import create_model
from ilmconvert.nn.layer import CONSTANTS
from ilmconvert.testing import randomize_norms
from tests.nn.constant_jobs import constants, network, two_passes


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = constants(model)
    assert len(before) == 4
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], t) for key, t in before.items())


def test_nothing_that_trains_moves_them() -> None:
    model = network().requires_grad_(True)
    before, average = constants(model), ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        model(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        average.update(model)
    assert_same(model, before)
    assert_same(average.module, before)
    assert not any("ref_" in name for name, _ in model.named_parameters())


def test_every_parameter_gets_a_gradient() -> None:
    """Also behind decoders that are zero."""
    model = network()
    model(torch.randn(2, 3, 9, 9)).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_keys_are_those_of_files_that_hold_parameters() -> None:
    layer = network()[1]
    keys = ["weight", "bias", "encoder", "weight_decoder", "bias_decoder", "restore_weight", "restore_bias"]
    assert list(layer.state_dict()) == [*keys, "ref_mean", "ref_std"]
    as_before = {key: t * 2 for key, t in layer.state_dict().items()}
    for assign in (False, True):
        loaded = ILMNorm(32, layer.num_groups, restore=True)
        loaded.load_state_dict(as_before, assign=assign)
        assert torch.equal(loaded.ref_std, layer.ref_std * 2)
        assert [name for name, _ in loaded.named_buffers()] == list(CONSTANTS)
        assert not any("ref_" in name for name, _ in loaded.named_parameters())


def test_they_go_where_the_model_goes(tmp_path: Path) -> None:
    model = network()
    before = constants(model)
    assert {t.dtype for t in constants(copy.deepcopy(model).half()).values()} == {torch.float16}
    assert {t.device.type for t in constants(copy.deepcopy(model).to("meta")).values()} == {"meta"}
    assert_same(copy.deepcopy(model), before)
    named = convert(randomize_norms(create_model("test_resnet", weights="none")))
    save(named, tmp_path / "m.safetensors")
    loaded, x = load(tmp_path / "m.safetensors"), torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), named(x))
    assert loaded.state_dict().keys() == named.state_dict().keys()


def test_a_functional_call_may_give_them() -> None:
    model, x = network(), torch.randn(2, 3, 9, 9)
    state = dict(model.state_dict())
    torch.testing.assert_close(functional_call(model, state, (x,)), model(x))
    other = {key: t + 1 if "ref_" in key else t for key, t in state.items()}
    assert (functional_call(model, other, (x,)) - model(x)).abs().max() > 0.1


def test_compiled_and_exported() -> None:
    model, x = network().eval(), torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    program = torch.export.export(model, (x,))
    assert {"1.ref_mean", "1.ref_std"} <= set(program.state_dict)
    torch.testing.assert_close(program.module()(x), model(x))


def test_a_pickled_layer_that_holds_parameters() -> None:
    layer = network()[1]
    before = layer.ref_std.clone()
    for name in CONSTANTS:
        layer._parameters[name] = nn.Parameter(layer._buffers.pop(name), requires_grad=False)
    loaded = pickle.loads(pickle.dumps(layer))
    assert [name for name, _ in loaded.named_buffers()] == list(CONSTANTS)
    assert torch.equal(loaded.ref_std, before)
    assert not any("ref_" in name for name, _ in loaded.named_parameters())


def test_opacus_takes_the_layer() -> None:
    assert GradSampleModule.validate(network(), strict=False) == []


@pytest.mark.slow  # two processes that learn what one does are tested with fine-tuning
def test_distributed_processes_agree_on_them(tmp_path: Path) -> None:
    mp.spawn(two_passes, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        expected = constants(network())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], t) for key, t in expected.items())


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_layer_without_restoring_has_none(name: str) -> None:
    layer = ILMNorm(8, 2, key_group_size=4)
    assert getattr(layer, name) is None
    assert name not in layer.state_dict()
