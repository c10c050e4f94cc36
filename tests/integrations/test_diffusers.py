"""diffusers: a converted model is trained, saved and loaded, alone and in a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ilmconvert import CheckpointError, ILMNorm, convert, info
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, norms

diffusers = pytest.importorskip("diffusers", reason="pip install '.[integrations]'")


def output(model: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: Tensor = model.eval()(x, torch.tensor([3, 700])).sample
    return result


def small_unet() -> Any:
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 16}
    names = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    torch.manual_seed(0)
    return randomize_norms(diffusers.UNet2DModel(**blocks, **names), scale=0.5)


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = Page("diffusers")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    start = convert(source)
    assert_same(output(page.run_next()["model"]), output(source))
    names = page.run_rest()
    model, again = names["model"], names["again"]
    assert_norms_learnt(model, start)
    expected = output(model)
    assert torch.equal(output(again), expected)
    assert torch.equal(output(names["pipeline"].unet), expected)
    assert info(again).layers == info(model).layers
    assert info(again).settings == info(model).settings
    assert not {"quantization_config", "_pre_quantization_dtype"} & set(again.config)
    assert not {"hf_quantizer", "is_quantized", "quantization_method"} & set(vars(again))
    again.train().save_pretrained("second")
    assert torch.equal(output(diffusers.UNet2DModel.from_pretrained("second")), expected)


def test_every_parameter_comes_back(tmp_path: Path) -> None:
    model = convert(small_unet(), include="*.norm1")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in model.config
    again, report = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert all(p.requires_grad for p in again.parameters())
    half = diffusers.UNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert len(list(norms(half))) == len(list(norms(model)))


def test_batch_norms(tmp_path: Path) -> None:
    """A model of the mixin's own kind, with running statistics."""

    class Network(diffusers.ModelMixin, diffusers.ConfigMixin):  # type: ignore[misc, name-defined]
        config_name = "config.json"

        @diffusers.configuration_utils.register_to_config
        def __init__(self, channels: int = 16) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layers(x)
            return result

    source, x = randomize_norms(Network()).eval(), torch.randn(2, 3, 8, 8)
    convert(source).save_pretrained(tmp_path)
    again = Network.from_pretrained(tmp_path)
    assert isinstance(again.layers[1], ILMNorm)
    assert_same(again(x), source(x))


def test_files_that_lack_something_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    convert(small_unet()).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lacking = next(name for name in tensors if name.endswith("norm1.weight"))
    del tensors[lacking]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=lacking):
        diffusers.UNet2DModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["metadata"]["layers"][0]["name"] = "nowhere"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="nowhere"):
        diffusers.UNet2DModel.from_pretrained(tmp_path)


def test_averages(tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    model = convert(small_unet())
    ema = EMAModel(model.parameters(), model_cls=diffusers.UNet2DModel, model_config=model.config)
    ema.step(model.parameters())
    with pytest.raises(CheckpointError, match=r"ema\.copy_to"):
        ema.save_pretrained(tmp_path)
    ema.copy_to(model.parameters())


def test_stock_models_are_saved_as_before(tmp_path: Path) -> None:
    source = small_unet()
    source.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(output(diffusers.UNet2DModel.from_pretrained(tmp_path)), output(source))
