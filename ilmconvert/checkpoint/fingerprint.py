"""Whether two models' tensors are the same, bit for bit."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from ilmconvert.surgery.module_state import state_of

# BatchNorm's counters mean nothing in evaluation, and older files of weights lack them.
_COUNTER = "num_batches_tracked"


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's tensors, BatchNorm's counters left out.

    >>> layer = nn.BatchNorm2d(4)
    >>> before = fingerprint(layer)
    >>> _ = layer.num_batches_tracked.add_(1)
    >>> fingerprint(layer) == before
    True
    >>> _ = layer.running_mean.add_(1)
    >>> fingerprint(layer) == before
    False
    """
    result = hashlib.sha256()
    for name, t in sorted(state_of(model).items()):
        if isinstance(t, Tensor) and name.rpartition(".")[2] != _COUNTER:
            result.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
            result.update(_bytes(t).numpy().data)
    return result.hexdigest()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether type, shape and every bit are the same: a NaN equals itself, and 0.0 isn't -0.0.

    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    """
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
