"""Flower: its apps and its strategy, run as a simulation; what its average makes of the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate

pytest.importorskip("flwr", reason="pip install '.[flower]'")

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's and Flower's own, of every version
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="pip install '.[flower]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    torch.manual_seed(0)
    page = Page("flower")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(page.run_next()["model"], x), evaluate(source, x))
    names = page.run_rest()
    for name, tensor in torch.load("federated.pt", weights_only=True).items():
        assert tensor.isfinite().all(), name
    names["model"].load_state_dict(torch.load("federated.pt", weights_only=True))
    assert_norms_learnt(names["model"], convert(source))


def averaged(first: nn.Module, second: nn.Module, weights: tuple[int, int]) -> dict[str, Tensor]:
    """Flower's average of two clients' state dicts."""
    records = [
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": weight})})
        for model, weight in zip((first, second), weights, strict=True)
    ]
    result: dict[str, Tensor] = aggregate_arrayrecords(records, "num-examples").to_torch_state_dict()
    return result


def test_average_keeps_a_converted_network() -> None:
    torch.manual_seed(0)
    start = randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(576, 2)))
    first, second = convert(start), convert(start)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(torch.randn_like(parameter))
    constants = {name for name, _ in first.named_buffers()}
    assert constants
    states = first.state_dict(), second.state_dict()
    for name, tensor in averaged(first, second, (1, 2)).items():
        assert tensor.dtype == states[0][name].dtype
        torch.testing.assert_close(tensor, (states[0][name] + 2 * states[1][name]) / 3, msg=name)
        if name in constants:
            torch.testing.assert_close(tensor, states[0][name], rtol=1e-6, atol=0, msg=name)


def test_average_of_batch_norm_is_not_its_union() -> None:
    """What the page says of BatchNorm."""
    norms = [nn.BatchNorm2d(1, momentum=None) for _ in range(2)]
    data = torch.randn(40, 1, 2, 2), torch.randn(40, 1, 2, 2) + 4
    for norm, x in zip(norms, data, strict=True):
        norm(x)
    norms[0](data[0])
    found = averaged(norms[0], norms[1], (1, 1))
    assert found["num_batches_tracked"].item() == 1.5
    assert found["running_var"].item() < 0.5 * torch.cat(data).var().item()
