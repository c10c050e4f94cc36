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


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_stand_in_a_list_as_well(inplace: bool) -> None:
    """MaskFormer calls its layers from a Python list, and registers the same ones under numbers."""
    from transformers.models.maskformer.modeling_maskformer import MaskFormerFPNModel

    torch.manual_seed(0)
    source = randomize_norms(MaskFormerFPNModel(32, [32, 32], feature_size=64)).eval()
    features = [torch.randn(1, 32, size, size) for size in (16, 8, 4)]
    expected = [t.detach() for t in source(features)]
    converted = convert(source, inplace=inplace)
    found = converted(features)
    assert_same(found, expected)
    sum(t.square().sum() for t in found).backward()
    assert {n for n, p in converted.named_parameters() if p.grad is None and not n.endswith("encoder")} == set()
