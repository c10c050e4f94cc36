"""Checkpoints: one safetensors file that holds the tensors and how to build the network again."""

from __future__ import annotations

from ilmconvert.checkpoint.delta import apply_delta, save_delta
from ilmconvert.checkpoint.save_load import load, save

__all__ = ["apply_delta", "load", "save", "save_delta"]
