"""What a run minimises: the labels' loss of timm, distillation, or a mixture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.models.head import classifier


def label_loss(recipe: Recipe) -> nn.Module:
    """timm's loss for the recipe's labels: mixed, smoothed or plain."""
    if recipe.mixup or recipe.cutmix:
        loss: nn.Module = SoftTargetCrossEntropy()
    elif recipe.smoothing:
        loss = LabelSmoothingCrossEntropy(recipe.smoothing)
    else:
        loss = nn.CrossEntropyLoss()
    return loss


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` of logits (N, classes), the mean over N.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015. Computed in float32.

    >>> float(distillation_loss(torch.eye(3), torch.eye(3), 2.0))
    0.0
    """
    log_p, log_q = (F.log_softmax(t.float() / temperature, dim=-1) for t in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features (N, D) over the teacher's mean square: 0 if equal, 1 for a student of 0."""
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(torch.finfo(torch.float32).tiny)


class ClassifierInput:
    """Catches the features that reach a model's classifier, also from inside DDP and ``torch.compile``."""

    def __init__(self, model: nn.Module) -> None:
        self._caught: Tensor | None = None
        classifier(model)[1].register_forward_pre_hook(self._catch)

    def _catch(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._caught = inputs[0]

    def take(self) -> Tensor:
        """The features (N, D) of the latest forward pass."""
        caught, self._caught = self._caught, None
        assert caught is not None
        return caught


class Objective:
    """The loss of a batch.

    Args:
        recipe: ``distill`` is the weight of distillation, the labels have the rest.
        student: the bare network that is trained.
        teacher: needed for distillation.
        features: compare the inputs of both classifiers instead of the logits; for a student with a new head.
        autocast: makes the context in which the teacher runs.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        features: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._weight = recipe.distill
        self._temperature = recipe.temperature
        self._label_loss = label_loss(recipe)
        self._teacher = teacher if recipe.distill else None
        self._autocast = autocast
        self._caught: tuple[ClassifierInput, ClassifierInput] | None = None
        if features and self._teacher is not None:
            self._caught = ClassifierInput(student), ClassifierInput(self._teacher)

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits (N, classes) of ``model``, which may wrap the student, for images ``x``."""
        logits = model(x)
        if not isinstance(logits, Tensor):
            kind = type(logits).__name__
            raise FineTuneError(f"the model gives {kind} in training, not logits; build it without auxiliary heads")
        loss = logits.new_zeros((), dtype=torch.float32)
        if self._weight < 1:
            loss = loss + (1 - self._weight) * self._label_loss(logits.float(), target)
        if self._teacher is not None:
            loss = loss + self._weight * self._distillation(logits, x)
        return loss, logits

    def _distillation(self, logits: Tensor, x: Tensor) -> Tensor:
        assert self._teacher is not None
        with torch.no_grad(), self._autocast():
            expected = self._teacher(x)
        if self._caught is None:
            return distillation_loss(logits, expected, self._temperature)
        student, teacher = (caught.take() for caught in self._caught)
        return feature_loss(student, teacher)
