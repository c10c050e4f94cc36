"""Autocast, which the layer's own arithmetic stays out of."""

from __future__ import annotations

import contextlib

import torch


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A context without autocast on devices of this type."""
    # The usual two by name: torch.compile of torch 2.6 can't look into is_autocast_available.
    available = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
