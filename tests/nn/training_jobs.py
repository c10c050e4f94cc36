"""What tests/nn/test_layer_in_training.py trains, also in processes of its own, which import little."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ilmconvert import convert
from ilmconvert.testing import randomize_norms


def network() -> nn.Module:
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(32), nn.GroupNorm(4, 16)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), norms[0], nn.ReLU(), nn.Conv2d(32, 16, 3), norms[1], nn.Flatten())
    converted = convert(randomize_norms(model))
    with torch.no_grad():
        for name, p in converted.named_parameters():
            if "decoder" in name:
                p.normal_(std=0.3)
    return converted.double()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    result = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return result


def train_half(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    x = torch.load(f"{folder}/x.pt", weights_only=True).chunk(2)[rank]
    model(x).square().sum().backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
