"""Hugging Face transformers: conversions that are trained, saved and loaded by its own means."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ilmconvert import CheckpointError, convert, info
from tests.helpers import randomize_norms
from tests.integrations.pages import PAGES, Page, assert_norms_learnt, assert_same, evaluate, norms

transformers = pytest.importorskip("transformers", reason="pip install '.[integrations]'")

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def settings(**others: Any) -> Any:
    return transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", **others
    )


def classifier(**others: Any) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(settings(num_labels=5, **others))
    return randomize_norms(model, scale=0.5)


def assert_equal_parts(got: nn.Module, expected: nn.Module) -> None:
    """The same layers, the same tensors."""
    assert info(got).layers == info(expected).layers
    ours, theirs = got.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_equal(got: nn.Module, expected: nn.Module) -> None:
    """The same layers, the same tensors, the same outputs."""
    assert_equal_parts(got, expected)
    assert_same(evaluate(got, X)[0], evaluate(expected, X)[0])


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # Trainer's default, on a CPU
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("transformers")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    assert_same(evaluate(page.run_next()["model"], X).logits, evaluate(source, X).logits)
    names = page.run_rest()
    assert_norms_learnt(names["model"], convert(source))
    assert_equal(names["resumed"], names["model"])
    assert_equal(names["again"], names["model"])
    assert_equal_parts(names["backbone"].timm_model.layer1, names["model"].timm_model.layer1)
    said = re.search(r"# (\d+ ILM Norm.*)", (PAGES / "transformers.md").read_text())
    assert said is not None
    assert capsys.readouterr().out.splitlines()[-1] == said[1]


@pytest.mark.parametrize("order", ["import ilmconvert, transformers", "import transformers, ilmconvert"])
def test_another_process(tmp_path: Path, order: str) -> None:
    model = convert(classifier())
    model.save_pretrained(tmp_path)
    save_file({"x": X, "y": evaluate(model, X).logits}, tmp_path / "expected")
    code = (
        f"{order}\n"
        "from safetensors.torch import load_file\n"
        f"model = transformers.AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})\n"
        f"expected = load_file({str(tmp_path / 'expected')!r})\n"
        "print(float((model(expected['x']).logits - expected['y']).abs().max() / expected['y'].abs().max()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1e-6


def test_a_model_in_memory_is_not_quantised(tmp_path: Path) -> None:
    model = convert(classifier())
    model.save_pretrained(tmp_path)
    for one in (model, transformers.AutoModelForImageClassification.from_pretrained(tmp_path)):
        assert not hasattr(one, "hf_quantizer")
        assert not getattr(one, "is_quantized", False)
        assert not hasattr(one.config, "quantization_config")
        assert one.half().dtype == torch.float16
        assert all(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize("to", ["ilm_ln", "gn"])
def test_targets_and_settings(tmp_path: Path, to: str) -> None:
    model = convert(classifier(), to, exclude="*shortcut*")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_equal(again, model)
    assert info(again).settings == info(model).settings


def test_a_converted_part(tmp_path: Path) -> None:
    model = classifier()
    model.resnet.encoder = convert(model.resnet.encoder)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert len(list(norms(again.resnet.encoder))) == len(list(norms(again))) == 5
    assert_equal(again, model)


def test_heads(tmp_path: Path) -> None:
    model = convert(classifier())
    model.save_pretrained(tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    assert_equal(base, model.resnet)
    base.save_pretrained(tmp_path / "base")
    whole = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert_equal(whole.resnet, model.resnet)
    assert_equal_parts(transformers.ResNetBackbone.from_pretrained(tmp_path / "whole").encoder, model.resnet.encoder)


def test_a_converted_head_stays_away_with_its_weights(tmp_path: Path) -> None:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], decoder_hidden_size=32, num_attention_heads=[1, 1, 2, 2]
    )
    model = convert(randomize_norms(transformers.SegformerForSemanticSegmentation(config), scale=0.5))
    model.save_pretrained(tmp_path)
    again = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    assert_equal(again, model)
    assert not list(norms(transformers.AutoModel.from_pretrained(tmp_path)))


def test_frozen_norms_stay_frozen(tmp_path: Path) -> None:
    backbone = settings(out_features=["stage2"])
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    older = {"use_timm_backbone": False, "use_pretrained_backbone": False}  # defaults of transformers before 5.1
    config = transformers.DetrConfig(backbone_config=backbone, d_model=32, num_queries=5, **sizes, **heads, **older)
    torch.manual_seed(0)
    source = transformers.DetrForObjectDetection(config)
    for name, buffer in source.named_buffers():
        if "normalization" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    model = convert(source)
    assert_same(evaluate(model, X).logits, evaluate(source, X).logits)
    model.save_pretrained(tmp_path)
    again = transformers.DetrForObjectDetection.from_pretrained(tmp_path)
    assert_equal(again, model)
    assert not any(p.requires_grad for norm in norms(again) for p in norm.parameters())


def test_a_model_from_the_configuration_of_a_conversion(tmp_path: Path) -> None:
    convert(classifier()).save_pretrained(tmp_path / "converted")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "converted")
    plain = transformers.AutoModelForImageClassification.from_config(config)
    plain.save_pretrained(tmp_path / "plain")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plain")
    assert not list(norms(again))
    assert torch.equal(evaluate(again, X).logits, evaluate(plain, X).logits)


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    convert(classifier()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith("restore_weight"))
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=re.escape(gone)):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path)


def test_a_damaged_entry_is_an_error(tmp_path: Path) -> None:
    convert(classifier()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["metadata"]["layers"][0]["config"]["num_groups"] = 7
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"can't be built again: .*num_groups"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path)


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    model = convert(classifier())
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(CheckpointError, match=r"quantised by torchao and converted; use ilmconvert\.save"):
        model.save_pretrained(tmp_path)
    assert model.config.quantization_config == {"quant_method": "torchao"}


def test_backbone() -> None:
    config = transformers.TimmBackboneConfig(
        backbone="test_resnet", use_pretrained_backbone=False, out_indices=[1, 2, 3]
    )
    source = randomize_norms(transformers.TimmBackbone(config), scale=0.5)
    got, expected = evaluate(convert(source), X).feature_maps, evaluate(source, X).feature_maps
    assert_same(list(got), list(expected))


def test_resnet_of_transformers() -> None:
    source = randomize_norms(transformers.ResNetModel(settings()), scale=0.5)
    assert_same(evaluate(convert(source), X).last_hidden_state, evaluate(source, X).last_hidden_state)


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
