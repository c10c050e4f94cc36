"""Runs of one arm that differ in seed and settings, trained at the same time on a GPU.

A step at batch size 2 leaves a GPU idle: its hundreds of small kernels take as long as it takes to start them. Here
the parameters of all runs are stacked, ``torch.func.vmap`` makes one forward pass of all networks, and the whole step
is one CUDA graph, for long runs one of fused kernels. Each run is that of :func:`benchmarks.evidence.train.train` up to
rounding; a test compares them.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from benchmarks.evidence.arms import Arm
from benchmarks.evidence.begin import begin
from benchmarks.evidence.compiled import Learn, compile_learning, description
from benchmarks.evidence.images import Images
from benchmarks.evidence.stacked import Stack, stackable
from benchmarks.evidence.stacked_optimizer import StackedOptimizer
from benchmarks.evidence.train import BATCH_SIZE, Settings, Trained, orders, recipe_of
from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.losses import ClassifierInput, feature_loss
from ilmconvert.finetune.networks import set_trainable, training_mode


@dataclass(frozen=True)
class Task:
    """One run: what was chosen, its seed, and the seed's training images."""

    settings: Settings
    seed: int
    images: Images


class Together:
    """The runs of ``tasks``.

    Args:
        source: the pretrained network in evaluation mode, on the device of the images; stays as it is.
        compiled: whether the step is to be compiled, which takes a minute or two.
    """

    def __init__(
        self,
        arm: Arm,
        tasks: Sequence[Task],
        source: nn.Module,
        num_classes: int,
        epochs: int,
        batch_size: int = BATCH_SIZE,
        *,
        compiled: bool = False,
    ) -> None:
        if arm.gate_penalty is not None:
            raise ILMConvertError("runs with gates can't be trained together; omit --together")
        self._tasks = tasks
        images = {task.seed: task.images for task in tasks}
        self._begun = {seed: begin(arm, source, part, num_classes, seed) for seed, part in images.items()}
        recipes = [recipe_of(arm, task.settings, epochs, task.seed, batch_size) for task in tasks]
        networks = [self._begun[task.seed].network for task in tasks]
        for begun in self._begun.values():
            set_trainable(begun.network, recipes[0], with_head=True)
        self._batches = min(map(len, images.values())) // batch_size
        self._stack = Stack(networks)
        self._optimizer = StackedOptimizer(self._stack, networks, recipes, self._batches, compiled=compiled)
        self._prepare_images(recipes)
        self._prepare_loss(networks[0], recipes, compiled)
        self._learn: Learn = self._loss_and_gradient
        if compiled:
            self._learn = compile_learning(self._learn, self._description, self._seen())

    @property
    def steps(self) -> int:
        return len(self._losses)

    def step(self) -> None:
        """The next step of every run."""
        losses, gradient = self._learn(*self._seen())
        self._alive &= losses.isfinite()
        lengths = self._optimizer.step(self._number, gradient, self._alive)
        self._losses.index_copy_(0, self._number, losses.unsqueeze(0))
        self._lengths.index_copy_(0, self._number, lengths.unsqueeze(0))
        self._number += 1

    def results(self) -> list[Trained]:
        """The networks after their last step, in evaluation mode, in the order of the tasks."""
        return [self._result(row, task) for row, task in enumerate(self._tasks)]

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [
            self._stack.flat,
            *self._stack.constants.values(),
            *self._optimizer.moments,
            self._losses,
            self._lengths,
            self._number,
            self._alive,
        ]

    def _result(self, row: int, task: Task) -> Trained:
        begun = self._begun[task.seed]
        network = copy.deepcopy(begun.network)
        self._stack.copy_to(network, row)
        losses = self._losses[:, row]
        loss = losses[-self._batches :].mean().item() if losses.isfinite().all() else math.nan
        gradient = statistics.median(self._lengths[: self._batches, row].tolist())
        return Trained(network.eval(), begun.network.eval(), begun.prepare, loss, gradient)

    def _prepare_images(self, recipes: Sequence[Recipe]) -> None:
        """All seeds' images on the device, and which of them each run sees in each step."""
        begun = list(self._begun.values())
        device = begun[0].inputs.device
        self._inputs = torch.stack([b.inputs for b in begun])  # (seeds, 2, N, 3, H, W)
        self._labels = torch.stack([b.labels for b in begun])
        self._features = torch.stack([b.features for b in begun if b.features is not None])
        place = {seed: i for i, seed in enumerate(self._begun)}
        self._place = torch.tensor([[place[task.seed]] for task in self._tasks], device=device)
        size = recipes[0].batch_size

        def shown(recipe: Recipe) -> Tensor:  # (2, steps, size): the image, and whether it is flipped
            count = self._inputs.shape[2]
            epochs = [torch.stack((order, side)) for order, side in orders(recipe, count)]
            return torch.cat(epochs, 1).unflatten(1, (-1, size))

        self._shown = torch.stack([shown(recipe) for recipe in recipes], 2).to(device)  # (2, steps, runs, size)
        steps = self._shown.shape[1]
        self._losses = torch.full((steps, len(recipes)), math.nan, device=device)
        self._lengths = self._losses.clone()
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._alive = torch.ones(len(recipes), dtype=torch.bool, device=device)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        image, side = self._shown[:, self._number].squeeze(1)  # (runs, size)
        return (
            self._inputs[self._place, side, image],
            self._labels[self._place, image],
            self._features[self._place, side, image],
        )

    def _seen(self) -> tuple[Tensor, ...]:
        """What :meth:`_loss_and_gradient` takes in the next step."""
        return (*self._batch(), self._distill, self._stack.flat, *self._stack.constants.values())

    def _loss_and_gradient(
        self, x: Tensor, labels: Tensor, wanted: Tensor, distill: Tensor, flat: Tensor, *constants: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of every run, (R,) and (R, P)."""
        flat = flat.detach().requires_grad_()
        named = dict(zip(self._stack.constants, constants, strict=True))
        losses = self._loss(self._stack.parameters(flat), named, x, labels, wanted, distill)
        (gradient,) = torch.autograd.grad(losses.sum(), flat)
        return losses.detach(), gradient

    def _prepare_loss(self, network: nn.Module, recipes: Sequence[Recipe], compiled: bool) -> None:
        base = stackable(copy.deepcopy(network), compiled=compiled)
        training_mode(base, freeze_batch_norm=recipes[0].freeze_batch_norm)
        self._description = description(base)
        caught = ClassifierInput(base)
        self._distill = torch.tensor([recipe.distill for recipe in recipes], device=self._losses.device)

        def loss(
            parameters: Mapping[str, Tensor],
            constants: Mapping[str, Tensor],
            x: Tensor,
            labels: Tensor,
            wanted: Tensor,
            distill: Tensor,
        ) -> Tensor:
            logits = functional_call(base, {**parameters, **constants}, (x,))
            by_labels = F.cross_entropy(logits, labels)
            result: Tensor = by_labels + distill * (feature_loss(caught.take(), wanted) - by_labels)
            return result

        self._loss: Callable[..., Any] = vmap(loss)


def train_all(groups: Sequence[Together]) -> None:
    """Every step of all groups; on a GPU each is a CUDA graph, and they run side by side."""
    if not groups[0].state()[0].is_cuda:
        for group in groups:
            for _ in range(group.steps):
                group.step()
        return
    # Libraries keep workspaces by stream, also in a graph: what runs side by side must not share one.
    streams = [torch.cuda.Stream() for _ in groups]
    graphs = [_captured(group, stream) for group, stream in zip(groups, streams, strict=True)]
    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(groups)) as pool:
        list(pool.map(_replay, graphs, streams, [group.steps for group in groups]))  # raises what one of them does


def _captured(group: Together, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """One step; the group is as it was."""
    before = [tensor.detach().clone() for tensor in group.state()]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        group.step()  # libraries make their workspaces
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        group.step()
    with torch.no_grad():
        for tensor, kept in zip(group.state(), before, strict=True):
            tensor.copy_(kept)
    return graph


def _replay(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, steps: int) -> None:
    with torch.cuda.stream(stream):
        for _ in range(steps):
            graph.replay()
    stream.synchronize()
