"""nnU-Net: a trainer that converts trains, saves, loads and starts from a stock checkpoint."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, norms

pytest.importorskip("nnunetv2", reason="pip install '.[integrations]'")
pytestmark = pytest.mark.filterwarnings("ignore")

STAGES = {"n_stages": 3, "features_per_stage": [8, 16, 32], "kernel_sizes": [[3, 3]] * 3}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        **STAGES,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
PLANS = {
    "dataset_name": "Dataset001_Shapes",
    "plans_name": "nnUNetPlans",
    "continue_training": False,
    "image_reader_writer": "NaturalImage2DIO",
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "batch_size": 2,
            "patch_size": [32, 32],
            "spacing": [1.0, 1.0],
            "batch_dice": True,
            "architecture": ARCHITECTURE,
        }
    },
}
DATASET = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "shape": 1}, "file_ending": ".png"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    for name in ("nnUNet_results", "nnUNet_preprocessed", "nnUNet_raw"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_compile", "false")
    preprocessed = tmp_path / "Dataset001_Shapes" / "nnUNetPlans_2d"
    preprocessed.mkdir(parents=True)
    (preprocessed / "case.b2nd").touch()  # nnU-Net looks at the ending
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return Page("nnunet")


def start(kind: Any) -> Any:
    trainer = kind(copy.deepcopy(PLANS), "2d", 0, DATASET, device=torch.device("cpu"))
    trainer.initialize()
    return trainer


def output(network: Any, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result: list[Tensor] = network.eval()(x)
    network.train()
    return result


def test_page(page: Page) -> None:
    names = page.run_rest()
    stock, trainer = start(names["nnUNetTrainer"]), start(names["nnUNetTrainerILM"])
    randomize_norms(stock.network)
    stock.save_checkpoint("stock.pth")
    load = importlib.import_module("nnunetv2.run.load_pretrained_weights").load_pretrained_weights
    with pytest.raises(AssertionError, match="missing"):
        load(trainer.network, "stock.pth")
    other = names["nnUNetTrainer"](copy.deepcopy(PLANS), "2d", 0, DATASET, device=torch.device("cpu"))
    names["convert_checkpoint"]("stock.pth", "converted.pth", other)
    load(trainer.network, "converted.pth")
    for network in (stock.network, trainer.network):  # nnU-Net starts its own output layers
        for layer in network.decoder.seg_layers:
            torch.nn.init.constant_(layer.weight, 0.1)
            torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 1, 32, 32)
    assert_same(output(trainer.network, x), output(stock.network, x))

    before = start(names["nnUNetTrainerILM"])
    before.network.load_state_dict(trainer.network.state_dict())
    target = [torch.randint(2, (2, 1, size, size)).float() for size in (32, 16)]
    trainer.train_step({"data": x, "target": target})
    assert len(list(norms(trainer.network.encoder))) == 3
    assert_norms_learnt(trainer.network, before.network)
    trainer.save_checkpoint("trained.pth")
    again = start(names["nnUNetTrainerILM"])
    again.load_checkpoint("trained.pth")
    assert all(map(torch.equal, output(again.network, x), output(trainer.network, x)))
