"""Which layers of a model can be calibrated against a source, and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ilmconvert.calibration.fit import META, Values
from ilmconvert.calibration.statistics import Moments, Statistics, joined, moments, source_moments, statistics
from ilmconvert.errors import CalibrationError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.paused_forward import Inputs
from ilmconvert.surgery.record_calls import Call, on_calls
from ilmconvert.surgery.sources import NormDescription, find_source

HAS_PATH = "has a restoring path: what it needs of an instance it takes from the instance"
NOT_AFFINE = "has no weight and bias to fit"
NO_SOURCE = "the source holds no norm layer of so many channels in this place"


@dataclass(frozen=True)
class Pair:
    """A layer to fit, and what the source has in its place."""

    layer: ILMNorm | nn.GroupNorm
    source_layer: nn.Module
    source: NormDescription

    @property
    def correction(self) -> int:
        """Of the layer's variances."""
        return self.layer.correction if isinstance(self.layer, ILMNorm) else 0

    @property
    def has_meta(self) -> bool:
        """Whether there is a meta-network to fit."""
        return isinstance(self.layer, ILMNorm)

    def values(self) -> Values:
        """The parameters that can be fitted, themselves."""
        names = ("weight", "bias", *META) if self.has_meta else ("weight", "bias")
        return {name: self.layer._parameters[name] for name in names}  # type: ignore[misc]

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Put values into the layer."""
        for name, own in self.values().items():
            if name in values:
                own.copy_(values[name])

    def statistics(self, x: Moments, target: Moments) -> Statistics:
        """Of the layer on inputs with these moments."""
        gamma = self.source.weight
        one = torch.ones(x.mean.shape[1], dtype=torch.float64, device="cpu")
        sign = one if gamma is None else torch.where(gamma.detach().cpu() < 0, -one, one)
        layer = self.layer
        return statistics(x, target, sign, num_groups=layer.num_groups, eps=layer.eps, correction=self.correction)


def pairs_of(model: nn.Module, source: nn.Module) -> tuple[dict[str, Pair], dict[str, str]]:
    """The layers that can be fitted, by name, and those that can't, with the reason.

    Raises:
        CalibrationError: there is none to fit.
    """
    modules = dict(source.named_modules(remove_duplicate=False))
    found: dict[str, Pair] = {}
    skipped: dict[str, str] = {}
    for made in layers_of(model):
        name, layer = made.name, model.get_submodule(made.name)
        assert isinstance(layer, ILMNorm | nn.GroupNorm)
        other = modules.get(name)
        describe = None if other is None else find_source(other)
        if isinstance(layer, ILMNorm) and layer.restore:
            skipped[name] = HAS_PATH
        elif layer.weight is None or layer.bias is None:
            skipped[name] = NOT_AFFINE
        elif other is None or describe is None or describe(other).num_channels != layer.num_channels:
            skipped[name] = NO_SOURCE
        else:
            found[name] = Pair(layer, other, describe(other))
    if not found:
        reasons = "; ".join(sorted(set(skipped.values()))) or "it holds no layer that a conversion made"
        raise CalibrationError(f"the model has no layer to calibrate: {reasons}")
    return found, skipped


def snapshot(pairs: Mapping[str, Pair]) -> dict[str, Values]:
    """Copies of all values."""
    return {name: {key: t.detach().clone() for key, t in pair.values().items()} for name, pair in pairs.items()}


def restore(pairs: Mapping[str, Pair], values: Mapping[str, Values]) -> None:
    """Put a :func:`snapshot` back."""
    for name, pair in pairs.items():
        pair.write(values[name])


def source_targets(
    source: nn.Module, pairs: Mapping[str, Pair], batches: list[Inputs]
) -> tuple[dict[str, Moments], Counter[str]]:
    """Of every layer, the moments of what the source's makes in the source; and how often it runs in a pass."""
    seen: dict[str, list[Moments]] = {name: [] for name in pairs}

    def record(call: Call) -> None:
        seen[call.name].append(source_moments(pairs[call.name].source, moments(call.args[0])))

    with on_calls({name: pair.source_layer for name, pair in pairs.items()}, record, before=True), torch.no_grad():
        for inputs in batches:
            source(*inputs)
    calls = Counter({name: -(-len(found) // len(batches)) for name, found in seen.items()})
    return {name: joined(found) for name, found in seen.items() if len(found) == len(batches)}, calls
