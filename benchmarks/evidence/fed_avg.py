"""Federated averaging on cached features: how images are divided, what a client does, the mean."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.evidence.cut import Features
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.networks import training_mode
from ilmconvert.finetune.optimizer import parameter_groups

FROZEN, TRAINED = "frozen-bn", "train-bn"
CONCENTRATION, CLIENTS, CLIP = 0.1, 10, 2.0

State = dict[str, Tensor]


def divided(labels: Tensor, clients: int, concentration: float, seed: int) -> list[Tensor]:
    """The indices of each client's images: each class divided by a draw of Dirichlet's distribution.

    >>> sorted(torch.cat(divided(torch.arange(40) % 4, 3, 0.1, seed=0)).tolist()) == list(range(40))
    True
    """
    generator = np.random.default_rng(seed)
    shares: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in labels.unique():
        own = torch.from_numpy(generator.permutation(torch.nonzero(labels == label).flatten().numpy()))
        ends = (generator.dirichlet([concentration] * clients).cumsum() * len(own)).round().astype(int)
        for client, indices in enumerate(torch.tensor_split(own, torch.from_numpy(ends[:-1]))):
            shares[client].append(indices)
    return [torch.cat(indices) for indices in shares]


def averaged(states: Sequence[State], weights: Sequence[int]) -> State:
    """The weighted mean of the floating-point tensors; of others the first client's.

    >>> averaged([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}], [2, 1])
    {'w': tensor(2.)}
    """
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return {
        name: torch.stack([state[name].double() * part for state, part in zip(states, share, strict=True)])
        .sum(0)
        .to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def train_client(network: nn.Module, images: Features, rate: float, batch_size: int, frozen: bool, seed: int) -> State:
    """One pass over a client's images, in place; what it sends to the server."""
    training_mode(network, freeze_batch_norm=frozen)
    recipe = Recipe(lr=rate, head_lr_scale=2.0, norm_lr_scale=0.1, restore_lr_scale=0.1)
    groups = [
        {"params": g["params"], "lr": rate * g["lr_scale"], "weight_decay": g["weight_decay"]}
        for g in parameter_groups(network, recipe)
    ]
    optimizer = torch.optim.SGD(groups, lr=rate)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for indices in order.split(batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images.inputs[indices]), images.labels[indices]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def train(arm: str, behind: nn.Module, images: Features, rate: float, batch_size: int, rounds: int, seed: int) -> None:
    """Federated averaging in place; clients without images take no part."""
    clients = [images.subset(own) for own in divided(images.labels, CLIENTS, CONCENTRATION, seed) if len(own)]
    local = copy.deepcopy(behind)
    for turn in range(rounds):
        start, states = copy.deepcopy(behind.state_dict()), []
        for number, client in enumerate(clients):
            local.load_state_dict(start)
            order = (seed * rounds + turn) * CLIENTS + number
            states.append(train_client(local, client, rate, batch_size, arm != TRAINED, order))
        behind.load_state_dict(averaged(states, [len(client) for client in clients]))
