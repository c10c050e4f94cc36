"""speechbrain: a speaker network is converted, trained by a Brain, and recovered by a Checkpointer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate, norms

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
pytest.importorskip("speechbrain", reason="pip install '.[integrations]'")


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("speechbrain")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 50, 40)
    model = page.run_next()["model"]
    assert_same(evaluate(model, x), evaluate(source, x))
    assert not [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    names = page.run_rest()
    assert_norms_learnt(names["model"], convert(source))
    assert torch.equal(evaluate(names["again"], x), evaluate(names["model"], x))


def test_pretrainer(tmp_path: Path) -> None:
    """Values of the stock network, read without strictness into a converted one, become those of its layers."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.utils.checkpoints import torch_parameter_transfer

    def network() -> ECAPA_TDNN:
        sizes = {"channels": [32, 32, 32, 32, 96], "attention_channels": 16, "lin_neurons": 16}
        return randomize_norms(ECAPA_TDNN(40, **sizes), scale=0.5)

    torch.manual_seed(0)
    source, model, x = network(), convert(network()), torch.randn(2, 50, 40)
    torch.save(source.state_dict(), tmp_path / "model.ckpt")
    torch_parameter_transfer(model, tmp_path / "model.ckpt")
    assert list(norms(model))
    assert_same(evaluate(model, x), evaluate(source, x))
