"""torchao: int8 weights of linear layers and convolutions, ILM Norms left in floating point."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ilmconvert import CheckpointError, save
from tests.helpers import randomize_norms, relative_error
from tests.integrations.pages import Page, assert_same, norms

torchao = pytest.importorskip("torchao", reason="pip install '.[integrations]'")

from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402  after importorskip

# Of versions before 0.18, which announce that the second version of a configuration becomes the default.
pytestmark = pytest.mark.filterwarnings("ignore:Config Deprecation")


@pytest.fixture(scope="module")
def names() -> dict:
    """What the page leaves behind, its norms randomised before it converts."""
    torch.manual_seed(0)
    page = Page("torchao")
    randomize_norms(page.run_next()["source"], scale=0.5).eval()
    return page.run_rest()


def quantised(model: nn.Module) -> set[str]:
    """Kinds of modules whose weight isn't a plain tensor."""
    return {
        type(m).__name__ for m in model.modules() if type(getattr(m, "weight", None)) not in (nn.Parameter, type(None))
    }


@torch.no_grad()
def test_page(names: dict) -> None:
    x = torch.randn(4, 3, 64, 64)
    source, model = names["source"], names["model"]
    expected = model(x)
    assert_same(expected, source(x))
    assert quantised(names["linears"]) == {"Linear"}
    assert quantised(names["everything"]) == {"Linear", "Conv2d"}
    # Half a step of 1/127 of the largest weight of a row or filter, once, or in each of 21 layers in turn.
    assert 0 < relative_error(names["linears"](x), expected) < 0.02
    assert 0 < relative_error(names["everything"](x), expected) < 0.1
    for kind in ("linears", "everything"):
        for new, old in zip(norms(names[kind]), norms(model), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


@torch.no_grad()
def test_loses_what_its_source_loses(names: dict) -> None:
    x = torch.randn(4, 3, 64, 64)
    source = copy.deepcopy(names["source"])
    config = names["IntxWeightOnlyConfig"](weight_dtype=torch.int8, granularity=names["PerAxis"](0))
    quantize_(source, config, names["wanted"])
    assert_same(names["everything"](x), source(x))


def test_convolutions_and_the_linear_configuration(names: dict) -> None:
    model = copy.deepcopy(names["model"])
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        quantize_(model, Int8WeightOnlyConfig(), lambda module, name: isinstance(module, nn.Conv2d))


def test_saving_is_refused_in_one_line(names: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save the model before it is quantised"):
        save(names["linears"], tmp_path / "quantised.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:torch.ao:DeprecationWarning")
@torch.no_grad()
def test_dynamic_quantisation_of_torch(names: dict) -> None:
    x, model = torch.randn(4, 3, 64, 64), names["model"]
    found = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert 0 < relative_error(found(x), model(x)) < 0.02
