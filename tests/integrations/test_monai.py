"""MONAI: a 3D U-Net is converted, trained, used, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilmconvert import ModelError, convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
pytest.importorskip("monai", reason="pip install '.[integrations]'")


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("monai")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 1, 16, 16, 16)
    assert_same(evaluate(page.run_next()["model"], x), evaluate(source, x))
    names = page.run_rest()
    assert_norms_learnt(names["model"], convert(source))
    assert names["segmentation"].shape == (1, 2, 24, 24, 24)
    assert torch.equal(evaluate(names["again"], x), evaluate(names["model"], x))


def test_copied_states() -> None:
    from monai.networks import copy_model_state
    from monai.networks.nets import BasicUNet

    def network() -> BasicUNet:
        return randomize_norms(BasicUNet(2, 1, 2, features=(8, 8, 8, 8, 8, 8), norm="batch"))

    torch.manual_seed(0)
    source, other, x = network(), network(), torch.randn(1, 1, 32, 32)
    converted, expected = convert(source), evaluate(other, x)
    for src in (converted, converted.state_dict()):
        with pytest.raises(ModelError, match="copy the weights, then convert"):
            copy_model_state(other, src)
    assert torch.equal(evaluate(other, x), expected)
    with pytest.raises(ModelError, match="copy the weights, then convert"):
        copy_model_state(converted, other.state_dict())
    assert_same(evaluate(converted, x), evaluate(source, x))
    copy_model_state(convert(other), source.state_dict(), exclude_vars="adn")
    second = convert(other)
    copy_model_state(second, converted)
    assert_same(evaluate(second, x), evaluate(source, x))
    copy_model_state(other, source)
    assert torch.equal(evaluate(other, x), evaluate(source, x))
