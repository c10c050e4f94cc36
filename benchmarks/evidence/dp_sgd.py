"""Opacus's DP-SGD on cached features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.evidence.cut import Features
from benchmarks.evidence.private_arms import head_of

DELTA, CLIP = 1e-5, 1.0


@dataclass(frozen=True)
class Scale:
    """How many images, of how many passes."""

    images: int = 2_000
    tests: int = 2_000
    batch_size: int = 200
    epochs: int = 5


@dataclass(frozen=True)
class Settings:
    """``rate`` of the head, and the rate of what else trains, as a share of it."""

    rate: float
    share: float = 0.0


@cache
def noise(epsilon: float, sample_rate: float, epochs: int) -> float:
    """Opacus's noise multiplier that spends ``epsilon``."""
    found: float = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=DELTA, sample_rate=sample_rate, epochs=epochs, accountant="rdp"
    )
    return found


@cache
def spent(history: tuple[tuple[float, float, int], ...]) -> float:
    """The epsilon of steps by (noise multiplier, sample rate, number of steps)."""
    accountant = RDPAccountant()
    accountant.history = list(history)
    return float(accountant.get_epsilon(DELTA))


def train_privately(
    behind: nn.Module, images: Features, settings: Settings, epsilon: float, scale: Scale, seed: int
) -> float:
    """DP-SGD in place; the epsilon that was spent."""
    torch.manual_seed(seed)
    head = list(head_of(behind).parameters())
    own = {id(parameter) for parameter in head}
    others = [p for p in behind.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": head, "lr": settings.rate}]
    groups += [{"params": others, "lr": settings.rate * settings.share}] if others else []
    engine = PrivacyEngine(accountant="rdp")
    private, optimizer, loader = engine.make_private(
        module=behind.train(),
        optimizer=torch.optim.SGD(groups, momentum=0.9),
        data_loader=DataLoader(TensorDataset(images.inputs, images.labels), batch_size=scale.batch_size),
        noise_multiplier=noise(epsilon, scale.batch_size / len(images), scale.epochs),
        max_grad_norm=CLIP,
    )
    for _ in range(scale.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(x), y).backward()
            optimizer.step()
    private.remove_hooks()
    return spent(tuple(engine.accountant.history))


@torch.no_grad()
def pooled(behind: nn.Sequential, images: Features) -> tuple[nn.Sequential, Features]:
    """The classifier alone, and what reaches it: the same function where nothing before it trains."""
    before = behind[:-1].eval()
    inputs = torch.cat([before(x) for x in images.inputs.split(50)])
    return behind[-1:], Features(inputs, images.labels)
