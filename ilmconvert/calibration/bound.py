"""A bound on the restoring path of the first norm: a converted network that is more robust than its source.

The statistics of the first norm's input say how an image was taken: its contrast and its light. Those of later layers
say what is on it, too; bounding them costs agreement on clean images. So the first ILM Norm alone gets a range
(:class:`ilmconvert.nn.restore_range.RestoreRange`): within it the network computes what its source computes, and
outside an image is normalised to the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.kernels import dispatch
from ilmconvert.nn.restore_range import RestoreRange, image_deviations, to_range
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.record_calls import Call, on_calls

#: Without images: about what calibration gives for photographs on a network whose input they centre.
DEFAULT_RANGE = RestoreRange(-0.6, 0.5, 1.3)
QUANTILE = 0.1
# Mean and standard deviation of photographs from 0 to 1. A normalisation that takes less than the mean away leaves the
# first norm running statistics of which grey is the larger part.
_GREY, _SPREAD = 0.45, 0.25


def bound(model: nn.Module, limits: Sequence[float] = DEFAULT_RANGE) -> str:
    """Give the first ILM Norm of a converted network a range, in place; returns its name.

    First in the order of registration, which is that of execution for the networks of timm and torchvision.

    Raises:
        ConversionError: no ILM Norm with a restoring path, or ``DEFAULT_RANGE`` for a network whose images aren't
            centred.
        ValueError: the range is empty.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> model = convert(source, "ilm_ln")
    >>> bound(model)
    '1'
    >>> model[1].restore_range.contrast_high
    0.5
    """
    name, layer = next(_restoring(model), (None, None))
    if name is None or layer is None:
        raise ConversionError("there is no restoring path to bound; convert with init='identity' (--init identity)")
    if limits is DEFAULT_RANGE:
        _check_centred(model)
    layer.restore_range = to_range(limits)
    return name


def _check_centred(model: nn.Module) -> None:
    """An error where ``DEFAULT_RANGE`` can't hold, as far as the model says what images it takes."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean = tuple(config.get("mean") or ())
    if any(abs(m - _GREY) > _SPREAD for m in mean):
        raise ConversionError(
            f"this network takes images that aren't centred (mean {mean}), for which no range is known: take it "
            "from images, by ilmconvert MODEL --robust --data DIR or calibrate_bound(model, batches)"
        )


def calibrate_bound(model: nn.Module, batches: Iterable[Tensor] | None = None, *, quantile: float = QUANTILE) -> str:
    """Make a converted network more robust: bound its first norm by the range that unlabelled images take, in place.

    The low limit of the contrast and the radius of the means are quantiles; the high limit is the largest contrast
    that was seen, since little is gained by weakening a strong image. The layer that runs first is bounded.

    Args:
        model: a converted network.
        batches: (N, C, H, W) each, prepared as for the network; some fifty images or more. None: :func:`bound` with
            ``DEFAULT_RANGE``.
        quantile: share of the images that may lie beyond each of these two limits; 0 to below 1/2.

    Returns:
        The name of the bounded layer.

    Raises:
        ConversionError: no restoring path, or images that don't differ.
        ValueError: ``quantile`` is out of its range.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 5)).eval()
    >>> _ = source[0].running_mean.normal_()
    >>> model, images = convert(source), torch.linspace(0.5, 1, 64).view(64, 1, 1, 1) * torch.randn(64, 3, 8, 8)
    >>> calibrate_bound(model, images.split(16), quantile=0.0)
    '0'
    >>> torch.allclose(model(images), source(images), atol=1e-5)
    True
    """
    if not 0 <= quantile < 0.5:
        raise ValueError(f"quantile={quantile} must be at least 0 and below 1/2")
    if batches is None:
        return bound(model)
    layers = dict(_restoring(model))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first: list[str] = []
    found: list[Tensor] = []

    def keep(call: Call) -> None:
        first.append(call.name)
        if call.name == first[0]:
            found.append(_deviations(layers[call.name], call.args[0]))

    with evaluating(model), torch.no_grad(), on_calls(layers, keep, before=True):
        for batch in batches:
            model(batch.to(device))
    values = torch.cat(found) if found else torch.empty(0, 2)
    if len(values) < 2:
        raise ConversionError("the bound needs a restoring path that runs and at least two images; give more images")
    contrast, radius = values.unbind(1)
    low, far = torch.quantile(contrast, quantile), torch.quantile(radius, 1 - quantile)
    if not low < contrast.max():
        raise ConversionError("all these images have the same contrast, which leaves no range; give various images")
    layers[first[0]].restore_range = RestoreRange(low.item(), contrast.max().item(), far.item()).checked()
    return first[0]


def _restoring(model: nn.Module) -> Iterator[tuple[str, ILMNorm]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, ILMNorm) and m.restore_weight is not None)


def _deviations(layer: ILMNorm, x: Tensor) -> Tensor:
    """Of each image, what a range limits: (N, 2), float32, on the CPU."""
    assert layer.ref_mean is not None
    assert layer.ref_std is not None
    means, variances = dispatch.moments(x, layer.num_channels)
    return image_deviations(means, variances, layer.ref_mean, layer.ref_std, layer.eps).float().cpu()
