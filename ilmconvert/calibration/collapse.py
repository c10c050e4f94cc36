"""ILM Norms whose rescaling has become constant, as the plain GroupNorm layers that they then are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert._constants import shown_by
from ilmconvert.calibration.batches import prepared
from ilmconvert.calibration.fit import fit_constants, sample_weights
from ilmconvert.calibration.score import Score, run, score
from ilmconvert.calibration.statistics import Moments, Statistics, grouped, joined, moments
from ilmconvert.errors import CollapseError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.group_norm_target import GroupNormConfig
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.record_calls import Call, on_calls
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped
from ilmconvert.surgery.replacement import copy_with
from ilmconvert.surgery.undo import is_group_norm

TOLERANCE = 1e-3

_CURE = "anneal the restoring path and decay the decoders while fine-tuning, or allow more with --tolerance"


@dataclass(frozen=True)
class CollapsedLayer:
    """One layer: ``deviation`` is the root of the plain layer's squared error over the variance of the layer's output.

    ``exact`` tells that nothing was measured: the decoders are zero and there is no restoring path.
    """

    name: str
    deviation: float
    exact: bool


@dataclass(frozen=True)
class Collapse:
    """What :func:`collapse` made.

    Attributes:
        model: the plain network, in evaluation mode.
        layers: in the model's own order.
        score: of the plain network against the given one, on the batches; None without batches.
    """

    model: nn.Module
    layers: tuple[CollapsedLayer, ...]
    score: Score | None

    _repr_html_ = shown_by("ilmconvert.report.notebook:collapse")

    @property
    def deviation(self) -> float:
        """The largest of all layers."""
        return max(layer.deviation for layer in self.layers)


def collapse(model: nn.Module, batches: Iterable[Any] | None = None, *, tolerance: float = TOLERANCE) -> Collapse:
    """A copy of ``model`` in which every ILM Norm is the stock GroupNorm that it equals.

    A layer with zero decoders and no restoring path (or one of zeros) is a GroupNorm already. Any other one is
    measured on ``batches``: its scale and shift have to be the same for all samples, up to the tolerance; their
    weighted means are taken.

    Args:
        model: with ILM Norm layers.
        batches: see :func:`ilmconvert.calibration.calibrate`; needed unless every layer is exact.
        tolerance: largest ``deviation`` of a layer.

    Raises:
        CollapseError: no ILM Norm, a layer that isn't constant (the worst is named), or nothing to measure it on.

    >>> found = collapse(nn.Sequential(ILMNorm(32, 8)))
    >>> type(found.model[0]).__name__, found.deviation
    ('GroupNorm', 0.0)
    """
    refuse_wrapped(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm)}
    if not layers:
        if any(GroupNormConfig.of(m) for m in model.modules()):
            raise CollapseError("the converted layers of this model are plain already; there is nothing to collapse")
        raise CollapseError("the model holds no ILM Norm to collapse; give a converted one")
    found = {name: _constants(m) for name, m in layers.items() if is_group_norm(m)}
    report = {name: CollapsedLayer(name, 0.0, exact=True) for name in found}
    device = next(iter(layers.values())).encoder.device
    inputs = [] if batches is None else prepared(batches, device)
    open_ones = {name: m for name, m in layers.items() if name not in found}
    if open_ones and not inputs:
        first = next(iter(open_ones))
        raise CollapseError(
            f"{first} has a meta-network or restoring path that isn't zero; give batches to measure it (--data IMAGES)"
        )
    with evaluating(model):
        for name, s in _measure(model, open_ones, inputs).items():
            found[name], report[name] = _fit(name, layers[name], s)
        worst = max(report.values(), key=lambda layer: layer.deviation)
        if not worst.deviation <= tolerance:
            share = f"{worst.deviation:.2g} of its output, more than {tolerance:g}"
            raise CollapseError(f"{worst.name} adapts to the instance ({share}): {_CURE}")
        expected = run(model, inputs)
    result = _replaced(model, layers, found)
    _note(result, model, worst.deviation)
    measured = score(run(result, inputs), expected) if inputs else None
    return Collapse(result, tuple(report[name] for name in layers), measured)


def _constants(layer: ILMNorm) -> tuple[Tensor, Tensor]:
    like = layer.encoder.new_ones(layer.num_channels)
    return (
        like if layer.weight is None else layer.weight.detach(),
        torch.zeros_like(like) if layer.bias is None else layer.bias.detach(),
    )


def _measure(
    model: nn.Module, layers: Mapping[str, ILMNorm], batches: list[tuple[Any, ...]]
) -> dict[str, list[Statistics]]:
    """What each layer does to each sample: its output is affine in its input, per sample and channel."""
    seen: dict[str, list[Statistics]] = {name: [] for name in layers}

    def record(call: Call) -> None:
        # not the module's own result, which a fused activation has gone over
        layer, x = layers[call.name], call.args[0]
        seen[call.name].append(_statistics(layer, x, ILMNorm.forward(layer, x)))

    with on_calls(layers, record, before=True), torch.no_grad():
        for inputs in batches:
            model(*inputs)
    return seen


def _statistics(layer: ILMNorm, x: Tensor, y: Tensor) -> Statistics:
    m, of_y = moments(x), moments(y)
    size = layer.num_channels // layer.num_groups
    mu, var = (t.repeat_interleave(size, 1) for t in grouped(m, layer.num_groups))
    sigma = (var + layer.eps).sqrt()
    mean_h, var_h = (m.mean - mu) / sigma, m.var / sigma.square()
    omega = _covariance(x, y, m, of_y) / sigma / var_h.clamp(min=1e-10)
    return Statistics(mean_h, var_h, omega, of_y.mean - omega * mean_h, m)


def _covariance(x: Tensor, y: Tensor, of_x: Moments, of_y: Moments) -> Tensor:
    a, b = (t.float().reshape(*t.shape[:2], -1).cpu().double() for t in (x, y))
    return ((a - of_x.mean.unsqueeze(2)) * (b - of_y.mean.unsqueeze(2))).mean(2)


def _fit(name: str, layer: ILMNorm, parts: list[Statistics]) -> tuple[tuple[Tensor, Tensor], CollapsedLayer]:
    """The constants nearest to what the layer does, and how near they are."""
    if not parts:
        raise CollapseError(f"{name} doesn't run on these batches, so nothing tells whether it is constant")
    mean_h, var_h, omega, beta = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("mean_h", "var_h", "omega", "beta")
    )
    s = Statistics(mean_h, var_h, omega, beta, joined([p.x for p in parts]))
    weight, bias = fit_constants(s, *_constants(layer))
    w = sample_weights(s)
    total = (w * (s.target_var + (s.target_mean - s.target_mean.mean(0)).square())).sum()
    error = (w * s.error(weight, bias)).sum()
    deviation = (error / total).sqrt().item() if total > 0 else 0.0
    like = layer.encoder
    return (weight.to(like.device, like.dtype), bias.to(like.device, like.dtype)), CollapsedLayer(
        name, deviation, exact=False
    )


def _replaced(
    model: nn.Module, layers: Mapping[str, ILMNorm], constants: Mapping[str, tuple[Tensor, Tensor]]
) -> nn.Module:
    names = {id(layer): name for name, layer in layers.items()}

    def make(old: nn.Module, copied: nn.Module) -> nn.Module:
        assert isinstance(copied, ILMNorm)
        fused = dict(copied.named_children())
        config = GroupNormConfig(copied.num_channels, copied.num_groups, copied.eps)
        new = config.build(drop=fused.get("drop"), act=fused.get("act"), device="meta")
        for key, value in zip(("weight", "bias"), constants[names[id(old)]], strict=True):
            own = getattr(copied, key)
            new._parameters[key] = nn.Parameter(value.clone(), requires_grad=own is not None and own.requires_grad)
        adopt(new, copied)
        return new

    return copy_with(model, layers, make).eval()


def _note(result: nn.Module, model: nn.Module, deviation: float) -> None:
    """What a checkpoint of the result says of itself."""
    found = noted(model)
    target = str(found.to or "gn").removeprefix("ilm_")
    collapsed = {"to": target, "collapsed": True, "collapse_deviation": deviation}
    note(result, found, settings={**found.settings, **collapsed})
