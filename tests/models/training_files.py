"""Files of weights as training scripts write them: what they store, under their names, with their classes."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers import randomize_norms


def tiny(**args: Any) -> nn.Module:
    """The same each time, and with norms that differ from a new model's."""
    torch.manual_seed(3)
    return randomize_norms(timm.create_model("test_resnet", **args))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names."""
    return {prefix + key: value for key, value in state.items()}


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same shapes."""
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


def with_timm(folder: Path) -> Path:
    """``last.pth.tar`` of timm's train.py, by its own saver, with averaged weights that are half of the others."""
    model = tiny()
    average = ModelEmaV3(model)
    average.module.load_state_dict(halved(model.state_dict()))
    arguments = argparse.Namespace(model="test_resnet", lr=0.1, mean=None, opt_betas=[0.9, 0.999], data_dir=folder)
    optimizer = create_optimizer_v2(model, "adamw", lr=0.1)
    model(torch.randn(2, 3, 32, 32)).mean().backward()
    optimizer.step()
    model.load_state_dict(tiny().state_dict())
    saver = CheckpointSaver(
        model, optimizer, args=arguments, model_ema=average, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(12, np.float64(77.5))
    return folder / "last.pth.tar"


def with_torchvision(folder: Path) -> Path:
    """``checkpoint.pth`` of torchvision's references/classification/train.py; averaged weights are half as large."""
    model = tiny()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.module.load_state_dict(halved(model.state_dict()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(data_path="/data", model="resnet50", device="cuda", lr=0.1, amp=True, weights=None),
        "model_ema": average.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def with_lightning(folder: Path) -> Path:
    """What Lightning's ModelCheckpoint writes of a module that holds the network as ``net`` and a loss with weights."""
    checkpoint = {
        "epoch": 4,
        "global_step": 500,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**prefixed("net.", tiny().state_dict()), "loss.weight": torch.ones(1000)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"path": PurePosixPath("/data"), "more": SimpleNamespace(size=224)},
    }
    torch.save(checkpoint, folder / "epoch=4.ckpt")
    return folder / "epoch=4.ckpt"


def with_mmengine(folder: Path, head: int | None = None) -> Path:
    """What mmengine's CheckpointHook writes: a backbone and a head, logs in a class of its own, times and counters."""
    buffer = _class_of("mmengine.logging.history_buffer", "HistoryBuffer")
    buffer._log_history = np.arange(6, dtype=np.float64)
    counts: defaultdict[str, int] = defaultdict(int, images=3)
    checkpoint = {
        "meta": {"epoch": 2, "iter": 300, "time": datetime.datetime(2026, 1, 1), "seed": np.int64(1), "counts": counts},
        "state_dict": {
            **prefixed("backbone.", tiny(num_classes=0).state_dict()),
            "head.fc.weight": torch.ones(head or 10, 8),
            "neck": None,
        },
        "message_hub": {"log_scalars": {"train/loss": buffer}, "runtime_info": {}},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "param_schedulers": [],
    }
    torch.save(checkpoint, folder / "epoch_2.pth")
    return folder / "epoch_2.pth"


def with_detectron2(folder: Path) -> Path:
    """``model_final.pth`` of detectron2: the backbone deep inside, and the iteration."""
    checkpoint = {
        "model": {
            **prefixed("backbone.bottom_up.", tiny(num_classes=0).state_dict()),
            "proposal_generator.anchor.0": torch.ones(3, 4),
            "pixel_mean": torch.ones(3, 1, 1),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"last_epoch": 9},
        "iteration": 8999,
    }
    torch.save(checkpoint, folder / "model_final.pth")
    return folder / "model_final.pth"


def with_moco(folder: Path) -> Path:
    """MoCo's checkpoint: two encoders that fit equally, each with a projector, and a queue."""
    network = tiny(num_classes=0).state_dict()
    projector = {"fc.0.weight": torch.ones(8, 8), "fc.2.weight": torch.ones(4, 8)}
    checkpoint = {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": {
            **prefixed("module.encoder_q.", {**network, **projector}),
            **prefixed("module.encoder_k.", {**halved(network), **projector}),
            "module.queue": torch.ones(4, 16),
            "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        },
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(checkpoint, folder / "moco.pth.tar")
    return folder / "moco.pth.tar"


def with_dino(folder: Path) -> Path:
    """DINO's checkpoint: a student and a teacher, no entry of a usual name."""
    network = tiny(num_classes=0).state_dict()
    head = {"head.mlp.0.weight": torch.ones(8, 8)}
    checkpoint = {
        "student": prefixed("module.", {**prefixed("backbone.", network), **head}),
        "teacher": {**prefixed("backbone.", halved(network)), **head},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 8)},
        "fp16_scaler": {"scale": 65536.0},
    }
    torch.save(checkpoint, folder / "dino.pth")
    return folder / "dino.pth"


def with_compiled_lightning(folder: Path) -> Path:
    """A compiled network inside of a distributed one inside of a module."""
    torch.save({"state_dict": prefixed("model.module._orig_mod.", tiny().state_dict())}, folder / "compiled.ckpt")
    return folder / "compiled.ckpt"


Writer = Callable[[Path], Path]


def _class_of(module: str, name: str) -> Any:
    """An object of a class of a library that needn't be installed."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):  # pickle imports the packages above it, too
        home = sys.modules.setdefault(".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    cls = getattr(home, name, None) or type(name, (), {"__module__": module})
    setattr(home, name, cls)
    return cls()
