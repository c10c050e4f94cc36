"""Hugging Face transformers: timm networks in their wrappers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate

transformers = pytest.importorskip("transformers", reason="pip install '.[integrations]'")


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("transformers")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(page.run_next()["model"], x).logits, evaluate(source, x).logits)
    names = page.run_rest()
    assert_norms_learnt(names["model"], convert(source))
    assert torch.equal(evaluate(names["again"], x).logits, evaluate(names["model"], x).logits)


def test_backbone() -> None:
    config = transformers.TimmBackboneConfig(
        backbone="test_resnet", use_pretrained_backbone=False, out_indices=[1, 2, 3]
    )
    source = randomize_norms(transformers.TimmBackbone(config), scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    got, expected = evaluate(convert(source), x).feature_maps, evaluate(source, x).feature_maps
    assert_same(list(got), list(expected))


def test_resnet_of_transformers() -> None:
    settings = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    source = randomize_norms(transformers.ResNetModel(settings), scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(convert(source), x).last_hidden_state, evaluate(source, x).last_hidden_state)
