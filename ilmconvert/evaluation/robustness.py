"""Networks side by side on clean and corrupted images: agreement with what the source says of the clean ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ilmconvert.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ilmconvert.data.transforms import Normalize
from ilmconvert.evaluation.metrics import Interval, same_class, top1_class, wilson
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.input_standardization import standardize

CLEAN = "clean"
BATCH_SIZE = 8  # small batches stay in the processor's cache

#: Exact changes of the normalised input, which leave the range of images: each undone by an affine map of the input.
AFFINE: dict[str, Callable[[Tensor], Tensor]] = {
    "contrast x0.25": lambda z: z * 0.25,
    "contrast x0.1": lambda z: z * 0.1,
    "contrast x4": lambda z: z * 4,
    "brightness +1": lambda z: z + 1,
}


@dataclass(frozen=True)
class Condition:
    """A corruption and its severity; severity None for ``CLEAN`` and the keys of ``AFFINE``."""

    name: str
    severity: int | None = None


@dataclass(frozen=True)
class Agreement:
    """One network under one condition.

    Attributes:
        agreement: share of the images with the class that the source gives the clean image.
        error: standard error of ``agreement`` over images.
        gain: ``agreement`` less the source's under the same condition.
        gain_error: standard error of ``gain``, from the difference image by image.
        count: how many images.
    """

    network: str
    condition: Condition
    agreement: float
    error: float
    gain: float
    gain_error: float
    count: int

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of ``agreement``."""
        return wilson(round(self.agreement * self.count), self.count)


class StandardizedInput(nn.Module):
    """The baseline: a network behind a standardisation of each image, over all channels and positions.

    Args:
        network: called with images of mean 0 and standard deviation ``std``.
        std: that of the images that the network knows, in normalised units.

    >>> StandardizedInput(nn.Identity())(3 * torch.randn(2, 3, 8, 8) + 1).std(correction=0).round(decimals=3)
    tensor(0.5500)
    """

    def __init__(self, network: nn.Module, std: float = 0.55) -> None:
        super().__init__()
        self.network = network
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(standardize(x, self.std))
        return result


def all_conditions(severities: Sequence[int] = SEVERITIES) -> list[Condition]:
    """Clean, the affine changes, and every corruption at each of the severities.

    >>> len(all_conditions((1, 3))) == 1 + len(AFFINE) + 2 * len(CORRUPTIONS)
    True
    """
    plain = [Condition(name) for name in (CLEAN, *AFFINE)]
    return plain + [Condition(name, severity) for name in CORRUPTIONS for severity in severities]


def compare_networks(
    networks: Mapping[str, nn.Module],
    images: Sequence[Tensor],
    normalize: Callable[[Tensor], Tensor],
    conditions: Sequence[Condition] | None = None,
) -> Iterator[Agreement]:
    """Every network under every condition, in the order of the conditions; the first network is the source.

    Args:
        networks: by title, in evaluation mode, from (N, 3, H, W) to (N, classes).
        images: (3, H, W) each, RGB from 0 to 1, of the size that the networks expect.
        normalize: from such images to the networks' input.
        conditions: default :func:`all_conditions`.

    Raises:
        ValueError: no image, no network, or an unknown corruption.
    """
    if not images or not networks:
        raise ValueError("give at least one image and one network")
    title, source = next(iter(networks.items()))
    ((_, found),) = predicted({title: source}, images, normalize, [Condition(CLEAN)])
    for condition, classes in predicted(networks, images, normalize, conditions):
        yield from agreements(condition, classes, found[title])


@torch.inference_mode()
def predicted(
    networks: Mapping[str, nn.Module],
    images: Sequence[Tensor],
    normalize: Callable[[Tensor], Tensor],
    conditions: Sequence[Condition] | None = None,
) -> Iterator[tuple[Condition, dict[str, Tensor]]]:
    """The class (N,) that each network gives every image, by title, condition after condition."""
    for condition in all_conditions() if conditions is None else conditions:
        batch = corrupted(images, condition, normalize)
        yield condition, {title: _classes(network, batch) for title, network in networks.items()}


def agreements(condition: Condition, classes: Mapping[str, Tensor], expected: Tensor) -> list[Agreement]:
    """What share of ``classes`` are as ``expected``; the first network is the one that the gains are over.

    >>> found = agreements(Condition("clean"), {"a": torch.tensor([1, 2, 3, 4])}, torch.tensor([1, 2, 3, 5]))
    >>> found[0].agreement
    0.75
    """
    same = {title: same_class(expected, found).double() for title, found in classes.items()}
    base = next(iter(same.values()))
    return [
        Agreement(
            title,
            condition,
            agreement=hits.mean().item(),
            error=standard_error(hits),
            gain=(hits - base).mean().item(),
            gain_error=standard_error(hits - base),
            count=len(hits),
        )
        for title, hits in same.items()
    ]


def corrupted(images: Sequence[Tensor], condition: Condition, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """The images under a condition as one batch of network input; each image's number is its seed."""
    if condition.severity is None:
        batch = normalize(torch.stack(list(images)))
        return batch if condition.name == CLEAN else _affine(condition.name)(batch)
    severity = condition.severity
    return normalize(torch.stack([corrupt(p, condition.name, severity, seed=i) for i, p in enumerate(images)]))


def _classes(network: nn.Module, batch: Tensor) -> Tensor:
    """On the CPU: networks may be on several devices."""
    device = next((p.device for p in network.parameters()), batch.device)
    return torch.cat([top1_class(network(part.to(device))).cpu() for part in batch.split(BATCH_SIZE)])


def _affine(name: str) -> Callable[[Tensor], Tensor]:
    if name not in AFFINE:
        raise ValueError(f"unknown change {name!r} without a severity; use {CLEAN} or one of {', '.join(AFFINE)}")
    return AFFINE[name]


def standard_error(values: Tensor) -> float:
    """Of the mean; infinite for a single image, of which nobody can tell."""
    count = values.numel()
    return values.std().item() / math.sqrt(count) if count > 1 else math.inf


def networks(bounded: nn.Module, normalize: Normalize, images: Sequence[Tensor]) -> dict[str, nn.Module]:
    """The source, the bounded network, and the source behind a standardisation of its input, by title.

    The source is the network without its bounds, which computes the same. Images are standardised to the mean
    standard deviation that ``images`` have, which favours that baseline.
    """
    std = torch.stack([normalize(p).std(correction=0) for p in images]).mean().item()
    source = without_bounds(bounded)
    return {"source": source, "bounded": bounded.eval(), "input standardised": StandardizedInput(source, std)}


def is_bounded(model: nn.Module) -> bool:
    """Whether a layer limits its restoring path.

    >>> is_bounded(nn.Sequential(ILMNorm(8, 1, key_group_size=8, restore=True, restore_bound=2.0)))
    True
    """
    layers = (layer for layer in model.modules() if isinstance(layer, ILMNorm))
    return any(layer.restore_bound is not None or layer.restore_range is not None for layer in layers)


def without_bounds(model: nn.Module) -> nn.Module:
    """A copy in which every instance passes the restoring path as it is.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> without_bounds(convert(source, restore_bound=2.0))[1].restore_bound is None
    True
    """
    free = copy.deepcopy(model).eval()
    for layer in free.modules():
        if isinstance(layer, ILMNorm):
            layer.restore_bound = layer.restore_range = None
    return free
