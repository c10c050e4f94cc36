"""Lightning: fit, save, load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilmconvert import convert, load
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate

pytest.importorskip("lightning", reason="pip install '.[integrations]'")


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("lightning")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(page.run_next()["network"], x), evaluate(source, x))
    names = page.run_rest()
    assert_norms_learnt(names["network"], convert(source))
    trained = evaluate(names["network"], x)
    assert torch.equal(evaluate(names["again"].network, x), trained)
    assert torch.equal(load("network.safetensors")(x), trained)
