"""The network of tests/nn/test_constants.py, also for processes of their own, which import little."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ilmconvert import convert
from ilmconvert.nn.layer import CONSTANTS
from ilmconvert.testing import randomize_norms


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.BatchNorm2d(16))
    return convert(randomize_norms(model))


def constants(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: t.clone() for key, t in model.state_dict().items() if key.rpartition(".")[2] in CONSTANTS}


def two_passes(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = network()
    if rank:  # what only the first process has loaded
        for t in model.state_dict().values():
            t.zero_()
    wrapped = DistributedDataParallel(model)
    x = torch.randn(2, 3, 9, 9)
    # DDP broadcasts buffers before each forward pass, also between two that have one backward pass.
    (wrapped(x).square().mean() + wrapped(2 * x).square().mean()).backward()
    torch.save(constants(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
