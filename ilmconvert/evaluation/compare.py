"""A converted model against its source, on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert._constants import shown_by
from ilmconvert.evaluation.latency import Cost, forward_cost
from ilmconvert.evaluation.layer_metrics import LayerFidelity, LayerSums, common_layers
from ilmconvert.evaluation.output_metrics import OutputSums, split_batch
from ilmconvert.evaluation.outputs import inputs_for, is_detector, run_stages
from ilmconvert.evaluation.progress_bar import count_bar
from ilmconvert.evaluation.worst_images import ImageFidelity
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.outputs import outputs
from ilmconvert.surgery.paused_forward import run_side_by_side

Interval = tuple[float, float]


@dataclass(frozen=True)
class Fidelity:
    """What :func:`fidelity` found. Shares lie between 0 and 1; intervals hold 95 %; None: there is no such number.

    Attributes:
        count: images (samples) seen.
        largest_error, mean_error: of the outputs' absolute differences.
        relative_error: ``largest_error`` over ``largest_output``, the source's largest absolute output.
        classes: number of logits; None (and with it the next six) where the output isn't one (N, classes) tensor.
        top1_agreement: share of images with the same largest logit.
        top1_interval: Wilson's interval of it.
        top5_agreement: share of images whose largest logit in the source is among the converted model's five
            largest; None for five classes or fewer.
        kl, largest_kl: mean and largest KL(source || converted), in nats.
        not_finite: images for which the converted model gives a NaN or an infinity.
        labelled: images with a label; without any, the next four are None.
        source_top1, converted_top1: accuracies.
        converted_top1_interval: Wilson's interval.
        difference_interval: of ``converted_top1 - source_top1``, for paired images.
        layers: in execution order.
        images: the worst ones, worst first.
        thumbnails: small copies (C, H, W) of ``images`` as the networks saw them; not part of :meth:`to_dict`.
        cost: None where it wasn't measured.
    """

    count: int
    largest_error: float
    mean_error: float
    relative_error: float
    largest_output: float
    classes: int | None = None
    top1_agreement: float | None = None
    top1_interval: Interval | None = None
    top5_agreement: float | None = None
    kl: float | None = None
    largest_kl: float | None = None
    not_finite: int = 0
    labelled: int = 0
    source_top1: float | None = None
    converted_top1: float | None = None
    converted_top1_interval: Interval | None = None
    difference_interval: Interval | None = None
    layers: tuple[LayerFidelity, ...] = ()
    images: tuple[ImageFidelity, ...] = ()
    thumbnails: tuple[Tensor | None, ...] = field(default=(), repr=False, compare=False)
    cost: Cost | None = None

    _repr_html_ = shown_by("ilmconvert.report.notebook:fidelity")

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them, but for infinities and NaN."""
        plain = {key: value for key, value in vars(self).items() if key not in ("thumbnails", "layers", "images")}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        cost = self.cost
        ratios = {} if cost is None else {"time_ratio": cost.time_ratio, "parameter_ratio": cost.parameter_ratio}
        return {
            **plain,
            "cost": None if cost is None else {**asdict(cost), **ratios},
            "layers": [asdict(layer) for layer in self.layers],
            "images": [{**asdict(image), "agrees": image.agrees} for image in self.images],
        }


def fidelity(
    source: nn.Module,
    converted: nn.Module,
    batches: Iterable[Any],
    *,
    layers: str | Sequence[str] = "norms",
    worst: int = 12,
    cost: bool = True,
    progress: Callable[[int], None] | bool | None = None,
) -> Fidelity:
    """Run a source and its conversion on the same images, in evaluation mode, and compare everything.

    Neither model's training flags, device or values change; each gets the images in its own type. Both run side by
    side, layer by layer, so that no activation is kept.

    Args:
        source, converted: the models.
        batches: tensors (N, ...), ``(images, labels)`` as loaders yield them (a label of -1 means none), or tuples
            of positional inputs.
        layers: which modules to compare; see :func:`ilmconvert.evaluation.layer_metrics.common_layers`. Detection
            models are compared by their outputs only.
        worst: how many of the worst images to keep.
        cost: also time one forward pass of the first batch.
        progress: called after each batch with the number of images done; True shows a bar.

    Raises:
        ModelError: no batch, outputs of different shapes, or layers that run in different orders.

    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> from ilmconvert import convert
    >>> found = fidelity(source, convert(source, "ilm_ln"), [torch.randn(4, 3, 8, 8)])
    >>> found.top1_agreement, found.relative_error < 1e-5, [layer.name for layer in found.layers]
    (1.0, True, ['1'])
    """
    detector = is_detector(source)
    names = [] if detector else common_layers(source, converted, layers)
    sums, layer_sums = OutputSums(worst), LayerSums(converted)
    first: tuple[tuple[Any, ...], tuple[Any, ...], int] | None = None
    done = 0
    with count_bar(progress, "images") as told, evaluating(source, converted), torch.no_grad():
        for batch in batches:
            inputs, labels = split_batch(batch)
            theirs, ours = inputs_for(source, inputs), inputs_for(converted, inputs)
            if detector:
                expected, found = run_stages(source, converted, theirs)
            else:
                pair = run_side_by_side(source, converted, theirs, ours, names, layer_sums.add)
                expected, found = (outputs(result) for result in pair)
            sums.add(expected, found, labels, inputs[0])
            first = first or (theirs, ours, len(labels))
            done += len(labels)
            if told is not None:
                told(done)
    summary, images = sums.summary(), sums.images.results()
    measured = forward_cost(source, converted, *first[:2], batch_size=first[2]) if cost and first else None
    return Fidelity(
        **summary,
        layers=layer_sums.results(),
        images=tuple(image for image, _ in images),
        thumbnails=tuple(thumbnail for _, thumbnail in images),
        cost=measured,
    )
