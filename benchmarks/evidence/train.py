"""One training run: the library's parameter groups, schedule, annealing and losses over images in memory.

The runs of :func:`ilmconvert.finetune.finetune` are the same steps; here the teacher's features are computed once for
every image and flip, which is a third of a step, and nothing is written.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.evidence.arms import Arm
from benchmarks.evidence.begin import Prepare, begin, evaluated_at_once
from benchmarks.evidence.gates import Gates
from benchmarks.evidence.images import Images
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.anneal import Annealing
from ilmconvert.finetune.losses import ClassifierInput, feature_loss
from ilmconvert.finetune.networks import set_trainable, training_mode
from ilmconvert.finetune.optimizer import Schedule, make_optimizer, parameter_groups

BATCH_SIZE = 2
CLIP = 2.0


@dataclass(frozen=True)
class Settings:
    """What is chosen on validation images."""

    rate: float
    distill: float = 0.5
    norm_scale: float = 0.1


@dataclass(frozen=True)
class Trained:
    """A network after its run, beside what it started from.

    Attributes:
        loss: the mean of the last epoch.
        gradient: the median length of the first epoch's gradients before they are clipped.
    """

    network: nn.Module
    start: nn.Module
    prepare: Prepare
    loss: float
    gradient: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)


def recipe_of(
    arm: Arm, settings: Settings, epochs: int, seed: int, batch_size: int = BATCH_SIZE, clip: float = CLIP
) -> Recipe:
    """The recipe that a run follows."""
    return Recipe(
        **{
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": settings.rate * arm.rate_scale,
            "clip_grad": clip,
            "head_lr_scale": 2.0,
            "norm_lr_scale": settings.norm_scale,
            "restore_lr_scale": settings.norm_scale,
            "distill": settings.distill,
            "freeze_epochs": arm.freeze_share * epochs,
            "warmup_epochs": arm.warmup_share * epochs,
            "seed": seed,
            **arm.recipe,
        }
    )


def train(
    arm: Arm,
    settings: Settings,
    source: nn.Module,
    images: Images,
    num_classes: int,
    epochs: int,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
    clip: float = CLIP,
    prepare: Prepare | None = None,
) -> Trained:
    """Train one arm on ``images`` and return it in evaluation mode.

    Args:
        source: the pretrained network in evaluation mode; stays as it is.
        seed: of the head, the order and the flips.
        prepare: another input than the arm's.
    """
    recipe = recipe_of(arm, settings, epochs, seed, batch_size, clip)
    begun = begin(arm, source, images, num_classes, seed, prepare, distilled=bool(settings.distill))
    # a step of two images takes less time on a processor in this layout
    network = copy.deepcopy(begun.network).to(memory_format=torch.channels_last)
    run = _Run(network, recipe, len(images), arm.gate_penalty)
    loss = run.all(begun.inputs, begun.labels, begun.features)
    return Trained(network.eval(), begun.network, begun.prepare, loss, run.first_gradient())


def orders(recipe: Recipe, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each epoch the images' order, and whether each is flipped."""
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    for _ in range(recipe.epochs):
        order = torch.randperm(count, generator=generator)[: count // recipe.batch_size * recipe.batch_size]
        yield order, torch.randint(2, (len(order),), generator=generator)


class _Run:
    """The steps of a run."""

    def __init__(self, network: nn.Module, recipe: Recipe, count: int, gate_penalty: float | None) -> None:
        if count < recipe.batch_size:
            raise ILMConvertError(f"there are {count} training images and a batch takes {recipe.batch_size}; give more")
        self._network, self._recipe = network, recipe
        self._batches = count // recipe.batch_size
        self._annealing = Annealing(recipe, self._batches)
        set_trainable(network, recipe, with_head=True)
        self._optimizer = make_optimizer(parameter_groups(network, recipe), recipe)
        self._schedule = Schedule(self._optimizer, recipe, self._batches)
        self._gates = None if gate_penalty is None else Gates(network, recipe, self._batches, gate_penalty)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._caught = ClassifierInput(network) if recipe.distill else None
        self._step = 0
        self._lengths: list[float] = []

    def first_gradient(self) -> float:
        """The median length of the first epoch's gradients."""
        return statistics.median(self._lengths[: self._batches])

    def all(self, inputs: Tensor, labels: Tensor, features: Tensor | None) -> float:
        """Every epoch; the mean loss of the last, which is not finite after a run that diverged."""
        loss, size = math.nan, self._recipe.batch_size
        for order, side in orders(self._recipe, len(labels)):
            training_mode(self._network, freeze_batch_norm=self._recipe.freeze_batch_norm)
            losses = []
            for indices, sides in zip(order.split(size), side.split(size), strict=True):
                wanted = None if features is None else features[sides, indices]
                losses.append(self._learn(inputs[sides, indices], labels[indices], wanted))
                if not math.isfinite(losses[-1]):
                    return losses[-1]
            loss = sum(losses) / len(losses)
        return loss

    def _learn(self, x: Tensor, target: Tensor, features: Tensor | None) -> float:
        logits = self._network(x)
        weight = self._recipe.distill
        loss = (1 - weight) * nn.functional.cross_entropy(logits, target)
        if self._caught is not None and features is not None:
            loss = loss + weight * feature_loss(self._caught.take(), features)
        loss.backward()
        self._schedule.apply(self._step)
        if self._step < self._recipe.freeze_epochs * self._batches:
            self._drop_backbone_gradients()
        assert self._recipe.clip_grad is not None
        self._lengths.append(nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_grad).item())
        self._optimizer.step()
        if self._gates is not None:
            self._gates.apply(self._step)
        self._optimizer.zero_grad()
        self._step += 1
        self._annealing.apply(self._network, self._step)
        return loss.item()

    def _drop_backbone_gradients(self) -> None:
        for group in self._optimizer.param_groups:
            if group["kind"] == "backbone":
                for parameter in group["params"]:
                    parameter.grad = None


@torch.inference_mode()
def predictions(network: nn.Module, prepare: Prepare, images: Images) -> Tensor:
    """The classes (N,) that a network in evaluation mode gives."""
    parts = images.pixels.split(evaluated_at_once(images.pixels))
    return torch.cat([network(prepare(pixels)).argmax(-1) for pixels in parts])


def accuracy(network: nn.Module, prepare: Prepare, images: Images) -> float:
    """The share of images of the right class."""
    return (predictions(network, prepare, images) == images.labels).double().mean().item()


def accuracies(network: nn.Module, prepare: Prepare, sets: Sequence[tuple[str, Images]]) -> dict[str, float]:
    """:func:`accuracy` for sets by name, in few passes."""
    if not sets:
        return {}
    every = Images(torch.cat([images.pixels for _, images in sets]), torch.cat([images.labels for _, images in sets]))
    right = (predictions(network, prepare, every) == every.labels).double()
    parts = right.split([len(images) for _, images in sets])
    return {name: part.mean().item() for (name, _), part in zip(sets, parts, strict=True)}
