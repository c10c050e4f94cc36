"""Sizes of a delta and of the whole checkpoint, on the real EfficientNet-Lite0, and whether both give one network.

``python -m benchmarks.delta`` prints a Markdown table. No time is measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from ilmconvert import apply_delta, convert, load, save, save_delta
from ilmconvert.checkpoint.fingerprint import same_bits
from ilmconvert.data.sample_photographs import load_lite0

#: What training may change: only what the conversion made, the head too, or everything.
STAGES = {"as converted": (), "head trained": ("classifier.",), "all trained": ("",)}


def main() -> None:
    base = load_lite0()
    print("| target | state | whole, bytes | delta, bytes | delta over whole | same network |")
    print("|---|---|---|---|---|---|")
    for to in ("ilm_gn", "ilm_ln", "ilm_in", "gn"):
        for stage, prefixes in STAGES.items():
            model = convert(base, to)
            _disturb(model, prefixes)
            with tempfile.TemporaryDirectory() as folder:
                whole = save(model, Path(folder) / "whole.safetensors")
                delta = save_delta(model, Path(folder) / "delta.safetensors", base=base)
                sizes = whole.stat().st_size, delta.stat().st_size
                same = _equal(apply_delta(base, delta), load(whole))
            print(f"| {to} | {stage} | {sizes[0]:,} | {sizes[1]:,} | {sizes[1] / sizes[0]:.2%} | {same} |")


def _disturb(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Stands for training: the size of a delta depends on which tensors changed, not on how."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if prefixes and name.startswith(prefixes):
                parameter.mul_(1.01)


def _equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(same_bits(ours[key], theirs[key]) for key in ours)


if __name__ == "__main__":
    main()
