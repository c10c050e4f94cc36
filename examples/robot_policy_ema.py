"""The image encoder of a robot's policy, started from ImageNet and used as a moving average of its weights.

Policies are mostly used as the moving average of their weights, and learn from small batches: neither suits BatchNorm,
whose running statistics belong to the weights and batches of training. Diffusion policy puts GroupNorm in its place,
and loses the pretrained weights. A converted encoder keeps them and has no running statistics. The task: reach for a
red puck on unseen tables, after 120 batches of 8 demonstrations. Errors are in half widths of the image:

    $ python examples/robot_policy_ema.py
    BatchNorm, training    error of the last weights 0.186, of their average 0.208
    BatchNorm, frozen      error of the last weights 0.103, of their average 0.115
    GroupNorm put in       error of the last weights 0.248, of their average 0.325
    converted to ILM-GN    error of the last weights 0.103, of their average 0.115

About 2 minutes on one CPU core; needs ``pip install '.[demo]'``. In a run this short the converted encoder
learns just what frozen BatchNorm learns, as it starts as the same function; every average still lags behind.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ilmconvert import convert
from ilmconvert.data.sample_photographs import load_lite0, sample_photographs
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

SIDE, BATCH, DECAY = 96, 8, 0.95
MEAN, STD = 0.5, 0.5  # of the network's input


class Table:
    """What the camera sees: a table (a crop of a photograph) and a red puck; the action is to reach for the puck."""

    def __init__(self, seed: int, held_out: bool) -> None:
        photographs = [p.image for p in sample_photographs() if p.whole]
        for photograph in photographs:
            photograph.thumbnail((320, 320))
        self.photographs = photographs[8:] if held_out else photographs[:8]
        self.random = np.random.default_rng(seed)

    def demonstrations(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 96, 96), and the actions (N, 2): where the puck is, from -1 to 1."""
        images, actions = [], self.random.uniform(-0.8, 0.8, (count, 2))
        rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
        for x, y in actions:
            photograph = self.photographs[self.random.integers(len(self.photographs))]
            side = int(min(photograph.size) * self.random.uniform(0.3, 0.8))
            left, top = (int(self.random.integers(length - side + 1)) for length in photograph.size)
            table = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
            seen = np.asarray(table) / 255 * self.random.uniform(0.4, 1.0)
            seen[(columns - x) ** 2 + (rows - y) ** 2 < 0.02] = (0.9, 0.1, 0.1)
            images.append((seen - MEAN) / STD)
        x = torch.tensor(np.stack(images), dtype=torch.float).permute(0, 3, 1, 2)
        return x.contiguous(), torch.tensor(actions, dtype=torch.float)


class Policy(nn.Module):
    """An encoder with a spatial soft-argmax of its feature map, as diffusion policies have, and a linear head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.points = nn.Conv2d(112, 16, 1)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.points(self.encoder.forward_intermediates(x, indices=[3], intermediates_only=True)[0])
        grid = torch.linspace(-1, 1, maps.shape[-1], device=x.device)
        weights = maps.flatten(2).softmax(2).view_as(maps)
        return self.head(torch.cat([(weights.sum(2) * grid).sum(2), (weights.sum(3) * grid).sum(2)], 1))


def clone_behaviour(policy: Policy, steps: int, tests: int, *, frozen_norms: bool) -> tuple[float, float]:
    """Train on demonstrations; the error (RMS) of the last weights and of their moving average on new tables."""
    world, average = Table(0, held_out=False), ModelEmaV3(policy, decay=DECAY, use_warmup=True)
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-4)
    for step in range(steps):
        policy.train()
        for module in policy.modules():
            if frozen_norms and isinstance(module, nn.BatchNorm2d):
                module.eval()
        images, actions = world.demonstrations(BATCH)
        loss = nn.functional.mse_loss(policy(images), actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(policy, step=step)
    images, actions = Table(1, held_out=True).demonstrations(tests)
    with torch.no_grad():
        found = [model.eval()(images) for model in (policy, average.module)]
    last, averaged = (float((result - actions).square().mean().sqrt()) for result in found)
    return last, averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    encoders = {
        "BatchNorm, training": lambda: load_lite0(),
        "BatchNorm, frozen": lambda: load_lite0(),
        "GroupNorm put in": lambda: group_norm_baseline(load_lite0(), copy_affine=True),
        "converted to ILM-GN": lambda: convert(load_lite0()),
    }
    for name, build in encoders.items():
        torch.manual_seed(0)
        counts = (3, 8) if options.quick else (120, 200)
        last, averaged = clone_behaviour(Policy(build()), *counts, frozen_norms="frozen" in name)
        print(f"{name:<22} error of the last weights {last:.3f}, of their average {averaged:.3f}", flush=True)


if __name__ == "__main__":
    main()
