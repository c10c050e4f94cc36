"""segmentation_models_pytorch: whole models and encoders."""

from __future__ import annotations

from itertools import compress
from pathlib import Path

import pytest
import torch
from torch import nn

from ilmconvert import ConversionError, convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate, norms

smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install '.[integrations]'")


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("segmentation_models_pytorch")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    expected = evaluate(source, x)
    assert_same(evaluate(page.run_next()["model"], x), expected)
    names = page.run_next()
    assert_same(evaluate(names["half"], x), expected)
    assert list(norms(names["half"].encoder))
    assert not list(norms(names["half"].decoder))
    page.run_rest()
    assert_norms_learnt(names["model"], convert(source))
    assert torch.equal(evaluate(names["again"], x), evaluate(names["model"], x))


def check(encoder: str) -> None:
    torch.manual_seed(0)
    source = randomize_norms(smp.Unet(encoder, encoder_weights=None, classes=3), scale=0.5)
    x = torch.randn(2, 3, 64, 64)
    model = convert(source)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert_same(evaluate(model, x), evaluate(source, x))
    assert_same(evaluate(convert(source.encoder), x)[1:], evaluate(source.encoder, x)[1:])
    # AdamW and a sum, since the gradient fades over so many random layers.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(x).square().sum().backward()
    optimizer.step()
    used = [norm.weight.grad is not None for norm in norms(model)]
    assert used.count(False) <= 1  # an EfficientNet keeps the norm of the head that an encoder doesn't call
    trained, start = (nn.ModuleList(compress(norms(m), used)) for m in (model, convert(source)))
    assert_norms_learnt(trained, start)


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_efficientnet"])
def test_encoder(encoder: str) -> None:
    check(encoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        "tu-resnet18",
        "mobilenet_v2",
        "efficientnet-b0",
        "tu-efficientnet_b0",
        "densenet121",
        "vgg11_bn",
        "xception",
        "inceptionv4",
        "dpn68",
        "se_resnet50",
        "tu-regnetx_002",
        "mobileone_s0",
        "tu-res2net50_26w_4s",
        "tu-resnest14d",
        "tu-gernet_s",
        "tu-skresnet18",
    ],
)
def test_encoder_of_the_package(encoder: str) -> None:
    check(encoder)


def test_layer_norm_encoder_is_refused() -> None:
    source = smp.Unet("mit_b0", encoder_weights=None)
    with pytest.raises(ConversionError, match="LayerNorm"):
        convert(source.encoder)
