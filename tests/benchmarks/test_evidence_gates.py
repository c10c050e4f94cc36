"""The evidence runner: learned gates on restoring paths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.gates import Gates
from benchmarks.evidence.together import Task, Together
from benchmarks.evidence.train import Settings
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.optimizer import learning_rates
from ilmconvert.nn import ILMNorm
from tests.benchmarks.evidence_jobs import small_images, small_network

RECIPE = Recipe(epochs=1, lr=0.1, warmup_epochs=0)
STEPS = 40


def _layers() -> tuple[nn.Module, Gates]:
    torch.manual_seed(0)
    network = nn.Sequential(
        ILMNorm(8, 2, key_group_size=4, restore=True), ILMNorm(8, 2, key_group_size=4, restore=True)
    )
    for parameter in network.parameters():
        parameter.data.uniform_(0.5, 1.5)
    return network, Gates(network, RECIPE, STEPS, 0.05)


def test_a_gate_shuts_unless_the_loss_opposes_the_penalty() -> None:
    network, gates = _layers()
    begin = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(STEPS):
        for name, parameter in network.named_parameters():
            grows = name in ("1.restore_weight", "1.restore_bias")
            parameter.grad = -parameter.detach() if grows else torch.zeros_like(parameter)
        gates.apply(step)
    assert gates.values.tolist() == [pytest.approx(0.01), 1.0]
    for name, value in network.state_dict().items():
        factor = 0.01 if name in ("0.restore_weight", "0.restore_bias") else 1.0
        assert torch.allclose(value, begin[name] * factor, rtol=1e-4)


def test_the_gradient_of_a_gate_is_that_of_a_factor_on_its_path() -> None:
    network, gates = _layers()
    gates.values = torch.tensor([0.8, 0.5])
    x = torch.randn(2, 8, 4, 4)
    first = network.get_submodule("0")
    factor = torch.tensor(1.0, requires_grad=True)
    path = {name: factor * getattr(first, name).detach() for name in ("restore_weight", "restore_bias")}
    network.get_submodule("1")(torch.func.functional_call(first, path, (x,))).square().mean().mul(0.1).backward()
    assert factor.grad is not None
    slope = factor.grad.item() / 0.8 + 0.05
    network.zero_grad()
    network(x).square().mean().mul(0.1).backward()
    rates = learning_rates(RECIPE, STEPS)
    gates.apply(0)
    expected = 0.8 - 1.2 * rates[0] / sum(rates) / 0.05 * slope
    assert gates.values[0].item() == pytest.approx(expected, rel=1e-5)


def test_runs_with_gates_are_not_trained_together() -> None:
    with pytest.raises(ILMConvertError, match="gates can't be trained together; omit --together"):
        Together(ARMS["ilm-gn-gated-adamw-fast"], [Task(Settings(0.01), 0, small_images())], small_network(), 3, 2)
