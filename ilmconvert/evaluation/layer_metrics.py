"""How large the error of every layer is against its signal, in execution order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ilmconvert.errors import ModelError
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.difference import Difference
from ilmconvert.surgery.outputs import outputs
from ilmconvert.surgery.record_calls import Call


@dataclass(frozen=True)
class LayerFidelity:
    """One layer's output, source against converted, over all batches.

    Signal-to-error ratios are ``10 log10(sum s^2 / sum (c - s)^2)`` in decibels, over all elements s of the source's
    outputs and c of the converted model's: inf where they are the same, NaN where one isn't finite or the shapes
    differ. Rounding in float32 gives 100 to 140 dB; at 0 dB the error is as large as the signal.

    Attributes:
        name: dotted path in both models.
        source, converted: class names of the two modules.
        snr: with the error of all layers before it.
        own_snr: of the layer alone, given what the source's layer got; None for layers that weren't converted.
        largest_error: largest absolute difference.
        relative_error: over the source's largest absolute output.
    """

    name: str
    source: str
    converted: str
    snr: float
    own_snr: float | None
    largest_error: float
    relative_error: float


def common_layers(source: nn.Module, converted: nn.Module, which: str | Sequence[str] = "norms") -> list[str]:
    """Names of the modules to compare, which both models have.

    Args:
        source, converted: the models.
        which: "norms" (every converted layer), "all" (these and every module without children), "none", or
            patterns as in ``convert(include=...)`` of any modules.

    Raises:
        ModelError: ``which`` matches nothing.

    >>> common_layers(nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential(nn.ReLU()), "all")
    ['0']
    """
    if which == "none":
        return []
    there = {name for name, _ in source.named_modules()}
    common = [(name, module) for name, module in converted.named_modules() if name in there]
    made = converted_names(converted)
    norms = [name for name, _ in common if name in made]
    if which == "norms":
        return norms
    if which == "all":
        inside = tuple(f"{name}." for name in norms)
        leaves = [n for n, m in common if n in norms or not (any(m.children()) or n.startswith(inside or "\0"))]
        return [name for name in leaves if name]
    patterns = [which] if isinstance(which, str) else list(which)
    found = [name for name, _ in common if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        raise ModelError(f"no layer of both models matches {', '.join(patterns)}; use norms, all, none or other names")
    return found


def converted_names(model: nn.Module) -> set[str]:
    """First names of the layers that a conversion made: ILM Norms, and plain ones.

    >>> converted_names(nn.Sequential(nn.ReLU()))
    set()
    """
    return {layer.name for layer in layers_of(model)}


class LayerSums:
    """Sums over batches, from which :meth:`results` come. Its memory doesn't grow with the images."""

    def __init__(self, converted: nn.Module) -> None:
        self._made = converted_names(converted)
        self._sums: dict[str, _Sums] = {}

    def add(self, source: Call, converted: Call) -> None:
        """One call of a layer in either model.

        Raises:
            ModelError: a converted layer got another shape than the source's layer, which isn't what it came from.
        """
        kinds = type(source.module).__name__, type(converted.module).__name__
        sums = self._sums.setdefault(source.name, _Sums(*kinds))
        expected = outputs(source.result)
        sums.all.add(expected, outputs(converted.result))
        if source.name in self._made:
            _check_shapes(source, converted)
            inputs = tuple(_like(a, converted.args[i]) for i, a in enumerate(source.args))
            # forward, not a call: the hooks have seen this layer
            sums.own.add(expected, outputs(converted.module.forward(*inputs)))

    def results(self) -> tuple[LayerFidelity, ...]:
        """All layers seen, in the order of their first call."""
        return tuple(
            LayerFidelity(
                name=name,
                source=sums.source,
                converted=sums.converted,
                snr=sums.all.decibels,
                own_snr=sums.own.decibels if name in self._made else None,
                largest_error=sums.all.largest,
                relative_error=sums.all.relative,
            )
            for name, sums in self._sums.items()
        )


def worst_layers(layers: Iterable[LayerFidelity], count: int = 5, *, alone: bool = False) -> list[LayerFidelity]:
    """The layers with the lowest signal-to-error ratios, lowest first; NaN counts as the lowest.

    With ``alone`` by the ratio of each layer by itself, of those that were converted.
    """

    def ratio(layer: LayerFidelity) -> float:
        value = layer.own_snr if alone else layer.snr
        return value if value is not None and value == value else -math.inf

    return sorted((one for one in layers if not alone or one.own_snr is not None), key=ratio)[:count]


@dataclass
class _Sums:
    """Of one layer: the class names, and the difference with and without the error of the layers before it."""

    source: str
    converted: str
    all: Difference = field(default_factory=Difference)
    own: Difference = field(default_factory=Difference)


def _check_shapes(source: Call, converted: Call) -> None:
    shapes = [[tuple(t.shape) for t in call.args if isinstance(t, Tensor)] for call in (source, converted)]
    if shapes[0] != shapes[1]:
        text = " and ".join(str(each[0] if len(each) == 1 else each) for each in shapes)
        raise ModelError(
            f"{source.name or 'the root'} gets {text} in the two models; give the model that was converted"
        )


def _like(value: Any, other: Any) -> Any:
    same = isinstance(value, Tensor) and isinstance(other, Tensor) and value.is_floating_point()
    return value.to(other) if same else value
