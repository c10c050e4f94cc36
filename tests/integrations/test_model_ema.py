"""timm's ModelEmaV3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3

from ilmconvert import convert, load
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("model_ema")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(page.run_next()["model"], x), evaluate(source, x))
    names = page.run_rest()
    average = names["average"].module
    assert_norms_learnt(names["model"], convert(source))
    assert_norms_learnt(average, convert(source))
    constants = dict(names["model"].named_buffers())
    assert {name.rpartition(".")[2] for name in constants} == {"ref_mean", "ref_std"}
    assert all(torch.equal(t, constants[name]) for name, t in average.named_buffers())
    assert torch.equal(load("average.safetensors")(x), evaluate(average, x))


def test_average_is_the_average() -> None:
    torch.manual_seed(0)
    model = convert(randomize_norms(Page("model_ema").run_next()["source"]))
    average = ModelEmaV3(model, decay=0.75)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    average.update(model)
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(p, 1.25 * first[name])
