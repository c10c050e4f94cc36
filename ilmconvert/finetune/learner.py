"""A network that learns: one batch after another, on whatever devices accelerate has."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.anneal import Annealing, check_annealing, restoring_parameters, without_restoring
from ilmconvert.finetune.dead import part_below_head
from ilmconvert.finetune.losses import Objective
from ilmconvert.finetune.networks import set_trainable, training_mode
from ilmconvert.finetune.optimizer import Schedule, make_optimizer, parameter_groups
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.seeding import seed_all
from ilmconvert.models.head import number_of_classes


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        network: changed by the run.
        recipe: how.
        train_head: whether the head trains where only norms do.
        teacher: for distillation.
        compare_features: distil what reaches the classifier instead of the logits.
    """

    network: nn.Module
    recipe: Recipe
    train_head: bool = False
    teacher: nn.Module | None = None
    compare_features: bool = False


class Learner:
    """The network of a job with its optimizer, schedule, average and annealing.

    Every random choice of a batch is seeded from (seed, number of the batch, rank): what a batch does depends on the
    state before it only.

    Args:
        job: see there.
        accelerator: puts everything where it belongs.
        steps_per_epoch: optimizer steps.

    Attributes:
        below_head: the part of the gradient that isn't the head's, in the last step of the last epoch; see
            :func:`ilmconvert.finetune.dead.part_below_head`.
    """

    recipe: Recipe
    accelerator: Accelerator
    steps_per_epoch: int
    annealing: Annealing
    teacher: nn.Module | None
    network: nn.Module
    ema: ModelEmaV3 | None
    schedule: Schedule
    model: Any
    optimizer: Any
    lr: float
    below_head: Tensor | None

    def __init__(self, job: Job, accelerator: Accelerator, steps_per_epoch: int) -> None:
        recipe, network = job.recipe, job.network
        self.recipe, self.accelerator, self.steps_per_epoch = recipe, accelerator, steps_per_epoch
        self.annealing = Annealing(recipe, steps_per_epoch)
        if self.annealing:
            check_annealing(network)
        set_trainable(network, recipe, with_head=job.train_head)
        self._template = copy.deepcopy(network).cpu()
        self.network = self._placed(network)
        self.teacher = None if job.teacher is None else self._placed(job.teacher)
        # with the warm-up a short run averages over its end, not over its start
        decay = recipe.ema_decay
        self.ema = None if decay is None else ModelEmaV3(self.network, decay=decay, use_warmup=True)
        optimizer = make_optimizer(parameter_groups(self.network, recipe), recipe)
        self.schedule = Schedule(optimizer, recipe, steps_per_epoch)
        self._objective = Objective(
            recipe, self.network, self.teacher, features=job.compare_features, autocast=accelerator.autocast
        )
        self._mixup = _mixup(recipe, number_of_classes(network))
        _save_memory_and_time(self.network, recipe)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.lr, self.below_head = 0.0, None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average where there is one."""
        model: nn.Module = self.model if self.ema is None else self.ema.module
        return model

    def train(self) -> None:
        """Training mode, as the recipe has it."""
        training_mode(self.model, freeze_batch_norm=self.recipe.freeze_batch_norm)

    def learn(self, x: Tensor, target: Tensor, *, batch: int, step: int) -> tuple[Tensor, Tensor, bool]:
        """One batch, number ``batch`` of the run, after ``step`` optimizer steps.

        Returns:
            The loss, the logits (N, classes), and whether the optimizer made a step.
        """
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            loss, logits = self.backward(x, target, batch=batch)
            updates: bool = accelerator.sync_gradients
            if updates:
                self.lr = self.schedule.apply(step)
                self._drop_frozen_gradients(step)
                if (step + 1) % self.steps_per_epoch == 0:
                    self.below_head = part_below_head(self.optimizer.param_groups)
                if self.recipe.clip_grad is not None:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if updates:
            self._after_update(step + 1)
        return loss, logits, updates

    def backward(self, x: Tensor, target: Tensor, *, batch: int) -> tuple[Tensor, Tensor]:
        """Forward and backward of a batch; the loss and the logits, both detached."""
        seed_all(self.recipe.seed, batch, self.accelerator.process_index)
        if self.recipe.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the batch before is needed any more
        if self.recipe.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._mixup is not None:
            x, target = self._mixup(x, target)
        loss, logits = self._objective(self.model, x, target)
        self.accelerator.backward(loss)
        return loss.detach(), logits.detach()

    def kept_network(self, step: int) -> nn.Module:
        """A copy of :attr:`evaluated` on the CPU, after ``step`` steps; without a restoring path that is gone."""
        state = self.accelerator.get_state_dict(self.model) if self.ema is None else self.ema.module.state_dict()
        network = copy.deepcopy(self._template).eval()
        if self.accelerator.is_main_process:
            network.load_state_dict(state)
            if self.annealing.gone(step):
                network = without_restoring(network)
        return network

    def _after_update(self, step: int) -> None:
        self.annealing.apply(self.network, step)
        if self.ema is None:
            return
        self.ema.update(self.network, step=step)
        if self.annealing:
            # an average would lag behind the path, and never be zero
            averaged, own = (list(restoring_parameters(m)) for m in (self.ema.module, self.network))
            for kept, value in zip(averaged, own, strict=True):
                kept.data.copy_(value)

    def _drop_frozen_gradients(self, step: int) -> None:
        """In the first epochs only norms and head train. Without a gradient no momentum is made; DDP needs them all."""
        if step < self.recipe.freeze_epochs * self.steps_per_epoch:
            for group in self.optimizer.param_groups:
                if group["kind"] == "backbone":
                    for parameter in group["params"]:
                        parameter.grad = None

    def _placed(self, network: nn.Module) -> nn.Module:
        if self.recipe.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.accelerator.device)


def _mixup(recipe: Recipe, num_classes: int | None) -> Mixup | None:
    if not recipe.mixup and not recipe.cutmix:
        return None
    if num_classes is None:
        raise FineTuneError("mixup and cutmix need to know the number of classes, which the model doesn't tell")
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)


def _save_memory_and_time(network: nn.Module, recipe: Recipe) -> None:
    if recipe.grad_checkpointing:
        if not hasattr(network, "set_grad_checkpointing"):
            raise FineTuneError(f"{type(network).__name__} can't checkpoint its activations; take the model from timm")
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    if recipe.compile or recipe.cuda_graphs:
        network.compile(mode="reduce-overhead" if recipe.cuda_graphs else None)
