"""Ultralytics: ``train`` begins with the converted network, whose layers its optimizers treat as norms.

See :mod:`ilmconvert.export.ultralytics_network` for what happens to the network itself.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer

from ilmconvert.errors import ModelError
from ilmconvert.surgery.converted_layers import layers_of

_train, _build_optimizer = Model.train, BaseTrainer.build_optimizer


@functools.wraps(_train)
def _train_converted(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not (isinstance(self.model, nn.Module) and layers_of(self.model)):
        return _train(self, *args, **kwargs)
    before = self.model, self.ckpt
    # Without a checkpoint, a network of the yaml would be trained, and the converted one dropped.
    self.ckpt = self.ckpt or {"model": self.model}
    self.add_callback("on_pretrain_routine_end", _check_converted)
    try:
        return _train(self, *args, **kwargs)
    except ModelError:
        self.model, self.ckpt = before
        raise
    finally:
        self.callbacks["on_pretrain_routine_end"].remove(_check_converted)


def _check_converted(trainer: Any) -> None:
    """``pretrained=`` and trainers of one's own may build networks that take nothing from the converted one."""
    if not layers_of(trainer.model):
        text = "the trainer built a network without the conversion; leave out pretrained=, resume= and trainer="
        raise ModelError(text)


@functools.wraps(_build_optimizer)
def _build_optimizer_for_norms(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = _build_optimizer(self, model, *args, **kwargs)
    groups = optimizer.param_groups
    layers = [model.get_submodule(layer.name) for layer in layers_of(model)]
    ours = {id(t) for layer in layers for name, t in layer.named_parameters(recurse=False) if name != "bias"}
    for group in groups:
        moved = [t for t in group["params"] if id(t) in ours]
        norms = [other for other in groups if other.get("param_group") == "bn"]
        target = next((other for other in norms if other["lr"] == group["lr"]), None)
        if moved and target is not None and target is not group:
            group["params"] = [t for t in group["params"] if id(t) not in ours]
            target["params"].extend(moved)
    return optimizer


Model.train, BaseTrainer.build_optimizer = _train_converted, _build_optimizer_for_norms
