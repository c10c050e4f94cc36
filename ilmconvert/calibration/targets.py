"""What every layer of a source makes of batches: what the layers in its places are fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ilmconvert.calibration.layers import Pair
from ilmconvert.calibration.statistics import Moments, joined, moments, source_moments
from ilmconvert.calibration.walk import Inputs


def source_targets(
    source: nn.Module, pairs: Mapping[str, Pair], batches: list[Inputs]
) -> tuple[dict[str, Moments], Counter[str]]:
    """Of every layer, the moments of what the source's makes in the source; and how often it runs in a pass."""
    seen: dict[str, list[Moments]] = {name: [] for name in pairs}

    def recorder(name: str, pair: Pair) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: seen[name].append(source_moments(pair.source, moments(args[0])))

    with ExitStack() as stack, torch.no_grad():
        for name, pair in pairs.items():
            stack.callback(pair.source_layer.register_forward_pre_hook(recorder(name, pair)).remove)
        for inputs in batches:
            source(*inputs)
    calls = Counter({name: -(-len(found) // len(batches)) for name, found in seen.items()})
    return {name: joined(found) for name, found in seen.items() if len(found) == len(batches)}, calls
