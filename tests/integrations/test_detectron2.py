"""Training in the manner of detectron2: its frozen norm, fvcore's checkpointer, groups by class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilmconvert import ILMNorm, convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate, norms

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
pytest.importorskip("fvcore", reason="pip install '.[integrations]'")


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fvcore.common.checkpoint import Checkpointer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    torch.manual_seed(0)
    page = Page("detectron2")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    frozen = source[1]
    for t in (frozen.weight, frozen.bias, frozen.running_mean):
        t.normal_()
    frozen.running_var.uniform_(0.3, 3)
    x = torch.randn(2, 3, 16, 16)
    model, start = page.run_next()["model"], convert(source)
    assert isinstance(model[1], ILMNorm)
    assert_same(evaluate(model, x), evaluate(source, x))
    names = page.run_rest()
    assert len(names["norms"]) == sum(len(list(layer.parameters())) for layer in norms(model))
    assert_norms_learnt(model, start)
    assert torch.equal(evaluate(names["again"], x), evaluate(model, x))

    Checkpointer(source, "output").save("stock")
    other = convert(names["build_model"]())
    Checkpointer(other).load("output/stock.pth")
    assert_same(evaluate(other, x), evaluate(source, x))
