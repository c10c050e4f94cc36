"""Parameter groups: factors on the learning rate, weight decay where it belongs; and the optimizer and schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.networks import norm_parameters
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.models.head import classifier
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.float64 import float64

_WARMUP_PART = 10
_PLAIN_OPTIMIZERS = ("sgd", "momentum")  # their steps are as long as the gradient
#: torch's own, which have a kernel for all parameters on these devices.
_FUSED_OPTIMIZERS, _FUSED_DEVICES = frozenset({"sgd", "momentum", "adamw"}), frozenset({"cpu", "cuda"})


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters that train, by kind (norm, restore, head, backbone), factor and weight decay.

    Each group has ``params``, ``kind``, ``weight_decay`` and ``lr_scale``, the factor that timm's schedulers apply:
    the recipe's for the kind times that of the layer, and that of :func:`encoder_scales`. Parameters of one dimension,
    and those that the model names in ``no_weight_decay()``, aren't decayed.

    Raises:
        FineTuneError: layer decay for a model whose layers timm doesn't know.
    """
    scales = {
        "norm": recipe.norm_lr_scale,
        "restore": recipe.restore_lr_scale,
        "head": recipe.head_lr_scale,
        "backbone": 1.0,
    }
    kinds, encoders = parameter_kinds(model), encoder_scales(model, recipe)
    sorted_out: dict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for group in _timm_groups(model, recipe):
        for parameter in group["params"]:
            kind = kinds.get(id(parameter), "backbone")
            scale = scales[kind] * group.get("lr_scale", 1.0) * encoders.get(id(parameter), 1.0)
            key = kind, scale, group["weight_decay"]
            sorted_out[key].append(parameter)
    return [
        {"params": parameters, "kind": kind, "lr_scale": scale, "weight_decay": decay}
        for (kind, scale, decay), parameters in sorted_out.items()
    ]


def encoder_scales(model: nn.Module, recipe: Recipe) -> dict[int, float]:
    """Factors on the encoders' learning rates by the parameters' ``id``, where they are less than 1.

    An encoder E stands before variances v: its entries are of the order 1 / v, its gradient is of the order v. A step
    of SGD at the common rate moves E by v^2 times its due, and v is about 100 in the wide layers of EfficientNet; the
    codes blow up and saturate sigmoid and tanh. The mean square of E's rows as a factor makes the step that of an
    encoder before variances of the order 1. Optimizers that scale gradients themselves need its root. Rounded down to
    powers of ten, for the sake of few parameter groups.

    >>> layer = ILMNorm(32)
    >>> _ = layer.encoder.data.fill_(0.02)
    >>> list(encoder_scales(layer, Recipe()).values())
    [0.0001]
    """
    power = 1.0 if recipe.opt in _PLAIN_OPTIMIZERS else 0.5
    found = {}
    for layer in model.modules():
        if isinstance(layer, ILMNorm) and not layer.encoder.is_meta:
            square = float64(layer.encoder).square().sum(1).mean().item()
            if 0 < square < 1:
                found[id(layer.encoder)] = 10.0 ** math.floor(power * math.log10(square))
    return found


def parameter_kinds(model: nn.Module) -> dict[int, str]:
    """The kind of each parameter by its ``id``, where that isn't the backbone."""
    kinds = {id(p): "restore" if name.startswith("restore_") else "norm" for name, p in norm_parameters(model)}
    try:
        head = classifier(model)[1]
    except FineTuneError:
        return kinds
    return {**kinds, **{id(p): "head" for p in head.parameters()}}


def _timm_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    exempt: Iterable[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if recipe.layer_decay is None:
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            model, recipe.weight_decay, no_weight_decay_list=set(exempt)
        )
        return groups
    if not hasattr(model, "group_matcher"):
        raise FineTuneError(
            f"layer_decay needs to know the layers' order, which {type(model).__name__} doesn't tell; "
            "take the model from timm or leave layer_decay out"
        )
    groups = param_groups_layer_decay(
        model, recipe.weight_decay, no_weight_decay_list=set(exempt), layer_decay=recipe.layer_decay
    )
    return groups


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """timm's optimizer of the recipe over :func:`parameter_groups`; in one kernel a group where torch has one.

    Raises:
        FineTuneError: it needs a GPU, or a package, that isn't there.
    """
    settings: dict[str, Any] = {"momentum": recipe.momentum}
    places = {p.device.type for group in groups for p in group["params"]}
    if recipe.opt in _FUSED_OPTIMIZERS and places <= _FUSED_DEVICES:
        # Without it each parameter takes operations of its own, of which small batches feel every one.
        settings["fused"] = True
    try:
        optimizer: Optimizer = create_optimizer_v2(
            groups, opt=recipe.opt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **settings
        )
    except (AssertionError, ImportError, RuntimeError) as error:  # of optimizers from other packages
        raise FineTuneError(f"{recipe.opt} can't be had here ({error}); take another one, such as adamw") from error
    return optimizer


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The learning rate of every optimizer step of a run, before the factors of the parameter groups.

    >>> learning_rates(Recipe(epochs=2, lr=0.5, sched="constant", warmup_epochs=0), 2)
    [0.5, 0.5, 0.5, 0.5]
    """
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "kind": "backbone", "weight_decay": 0.0}
    schedule = Schedule(torch.optim.SGD([group], recipe.learning_rate), recipe, steps_per_epoch)  # any has these rates
    return [schedule.apply(step) for step in range(steps_per_epoch * recipe.epochs)]


class Schedule:
    """The learning rate of every optimizer step: timm's schedule, applied per update."""

    def __init__(self, optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        self._optimizer = optimizer
        self._highest = recipe.learning_rate
        self._scheduler: Scheduler | None = None
        if recipe.sched != "constant" or warmup_epochs(recipe, steps_per_epoch):
            self._scheduler = _timm_schedule(optimizer, recipe, steps_per_epoch)

    def apply(self, step: int) -> float:
        """Set the learning rates of step ``step`` (from 0); returns the one of a group without a factor."""
        if self._scheduler is not None:
            self._scheduler.step_update(step)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = self._highest * group["lr_scale"]
        for group in self._optimizer.param_groups:
            if group["lr_scale"]:
                return float(group["lr"]) / float(group["lr_scale"])
        return 0.0


def warmup_epochs(recipe: Recipe, steps_per_epoch: int) -> float:
    """Epochs in which the rate rises: the recipe's, or whole steps up to a tenth of the run, in a short one none.

    A new head is random and sends long gradients below. At a full rate the first steps can silence a network for good,
    with any norm (docs/finetune.md, "Too high a rate").

    >>> warmup_epochs(Recipe(epochs=3), 200), warmup_epochs(Recipe(epochs=3, warmup_epochs=1), 200)
    (0.3, 1.0)
    >>> warmup_epochs(Recipe(epochs=1), 19)  # of a warm-up of one step only the rate of zero would be left
    0.0
    """
    if recipe.warmup_epochs is not None:
        return recipe.warmup_epochs
    steps = recipe.epochs * steps_per_epoch // _WARMUP_PART
    return steps / steps_per_epoch if steps > 1 else 0.0


def _timm_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    constant = recipe.sched == "constant"
    scheduler, _ = create_scheduler_v2(
        optimizer,
        # one stair at the very end is a constant with timm's warm-up
        sched="step" if constant else recipe.sched,
        decay_epochs=recipe.epochs + 1,
        num_epochs=recipe.epochs,
        warmup_epochs=warmup_epochs(recipe, steps_per_epoch),
        warmup_lr=0.0,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler
