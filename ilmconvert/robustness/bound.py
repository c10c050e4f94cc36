"""A bound on the restoring path of the first norm: a converted network that is sturdier than its source.

The statistics of the first norm's whole input say how a picture was taken: its contrast and its brightness. Those of
later layers say what is on it, too; bounding them costs agreement on clean pictures. So the first ILM Norm alone gets
a range (:class:`ilmconvert.nn.range.Range`): within it the network computes what its source computes, and outside a
picture is normalised to the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.fidelity.outputs import evaluating
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.range import Range, whole_deviations

#: Without pictures: a factor of 1.65 in contrast, half a standard deviation in brightness.
DEFAULT_RANGE = Range(-0.5, 0.5, -0.5, 0.5)
#: The least that calibration leaves to the mean, in reference standard deviations: dark pictures are common.
LEAST_MEAN = 0.3
QUANTILE = 0.05


def bound(model: nn.Module, limits: Range = DEFAULT_RANGE) -> str:
    """Give the first ILM Norm of a converted network a range, in place; returns its name.

    First in the order of registration, which is that of execution for the networks of timm and torchvision.

    Raises:
        ConversionError: no ILM Norm with a restoring path.
        ValueError: a lower limit isn't below its upper one.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> model = convert(source, "ilm_ln")
    >>> bound(model)
    '1'
    >>> model[1].restore_range.std_high
    0.5
    """
    name, layer = next(_restoring(model), (None, None))
    if name is None or layer is None:
        raise ConversionError("there is no restoring path to bound; convert with init='identity'")
    layer.restore_range = Range(*limits).checked()
    return name


def calibrate_bound(model: nn.Module, batches: Iterable[Tensor], *, quantile: float = QUANTILE) -> str:
    """:func:`bound` with the range that unlabelled pictures take; the layer that runs first is bounded.

    Contrast gets the range from ``quantile`` to ``1 - quantile``. Brightness gets all that was seen, and at least
    ``LEAST_MEAN`` to both sides: nothing is gained by correcting a picture that is merely dark.

    Args:
        model: a converted network, in place.
        batches: (N, C, H, W) each, prepared as for the network; some fifty pictures or more.
        quantile: share of the pictures that may lie beyond each limit of the contrast; 0 to below 1/2.

    Returns:
        The name of the bounded layer.

    Raises:
        ConversionError: no restoring path, or fewer than two pictures.
        ValueError: ``quantile`` is out of its range.
    """
    if not 0 <= quantile < 0.5:
        raise ValueError(f"quantile={quantile} must be at least 0 and below 1/2")
    seen = _Deviations(dict(_restoring(model)))
    with evaluating(model), torch.no_grad(), seen:
        for batch in batches:
            model(batch)
    if seen.first is None or len(seen.values) < 2:
        raise ConversionError(
            "the bound needs a restoring path that runs and at least two pictures; give more pictures"
        )
    std, mean = seen.values.unbind(1)
    low, high = (torch.quantile(std, q).item() for q in (quantile, 1 - quantile))
    limits = Range(low, high, min(mean.amin().item(), -LEAST_MEAN), max(mean.amax().item(), LEAST_MEAN))
    seen.layers[seen.first].restore_range = limits.checked()
    return seen.first


def _restoring(model: nn.Module) -> Iterator[tuple[str, ILMNorm]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, ILMNorm) and m.restore_weight is not None)


class _Deviations:
    """While entered, keeps the deviations (pictures, 2) of whichever layer runs first."""

    def __init__(self, layers: dict[str, ILMNorm]) -> None:
        self.layers = layers
        self.first: str | None = None
        self.values = torch.empty(0, 2)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Deviations:
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(partial(self._keep, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.first = name if self.first is None else self.first
        if name == self.first:
            assert isinstance(layer, ILMNorm)
            assert layer.ref_mean is not None
            assert layer.ref_std is not None
            found = whole_deviations(inputs[0], layer.ref_mean, layer.ref_std, layer.eps)
            self.values = torch.cat((self.values, found.float().cpu()))
