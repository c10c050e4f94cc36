"""A real network converted, against its source and against the usual replacement of BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert._constants import exact_targets, shown_by
from ilmconvert.data.sample_photographs import class_names, load_lite0, preprocess, sample_photographs
from ilmconvert.errors import ILMConvertError
from ilmconvert.evaluation.difference import OutputComparison
from ilmconvert.surgery import convert
from ilmconvert.surgery.difference import relative_error
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

BATCH_SIZE = 12


@dataclass(frozen=True)
class Comparison:
    """One network against the source, over all sample images.

    ``classes`` holds the top-1 class names; ``agreement`` the share of images on which the top-1 class is
    the source's; ``largest_error`` and ``mean_error`` the largest and the mean absolute difference of the
    logits over the source's largest absolute logit.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    agreement: float
    largest_error: float
    mean_error: float


@dataclass(frozen=True)
class DemoResult:
    """What :func:`run_demo` found; ``networks[0]`` is the source, ``whole`` tells photographs from crops."""

    to: str
    images: tuple[str, ...]
    whole: tuple[bool, ...]
    networks: tuple[Comparison, ...]

    _repr_html_ = shown_by("ilmconvert.report.notebook:demo")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain lists, dicts and numbers, ready for JSON."""
        return asdict(self)


def logits_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's logits (N, classes), a few images at a time."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.split(batch, BATCH_SIZE)])


def compare(name: str, title: str, source: Tensor, logits: Tensor) -> Comparison:
    """Logits (N, 1000) of one network against the source's."""
    compared = OutputComparison()
    compared.add([source], [logits])
    difference = compared.difference
    mean = relative_error(difference.mean, difference.scale)
    return Comparison(name, title, class_names(logits), compared.agreement or 0.0, difference.relative, mean)


def run_demo(to: str = "ilm_gn", *, progress: Callable[[str], None] | None = None) -> DemoResult:
    """Classifies the sample images with the source, the usual alternatives and both conversions to ``to``.

    ``networks`` of the result are, in order: ``source``; ``frozen`` (the source's BatchNorm with fixed statistics,
    the same function in evaluation); ``fresh`` (GroupNorm(32), gamma 1, beta 0);
    ``copied`` (GroupNorm(32), the source's gamma and beta); ``identity`` and ``moments``
    (:func:`ilmconvert.convert` with that ``init``). ``progress`` is called with the title of each network
    before it is run.

    Raises:
        ILMConvertError: a package of the extra ``demo`` is missing, or ``to`` is none of ilm_gn, ilm_ln,
        ilm_in.
    """
    if to not in exact_targets():
        raise ILMConvertError(f"unknown target {to!r}; use one of {', '.join(exact_targets())}")
    source = load_lite0()
    images = sample_photographs()
    batch = preprocess(source, images)
    reference: Tensor | None = None
    networks = []
    for name, title, model in _networks(source, to):
        if progress is not None:
            progress(title)
        logits = logits_of(model, batch)
        reference = logits if reference is None else reference
        networks.append(compare(name, title, reference, logits))
    names, whole = tuple(p.name for p in images), tuple(p.whole for p in images)
    return DemoResult(to, names, whole, tuple(networks))


def _networks(source: nn.Module, to: str) -> Iterator[tuple[str, str, nn.Module]]:
    from timm.layers import freeze_batch_norm_2d

    label = to.upper().replace("_", "-")
    yield "source", "source (BatchNorm)", source
    yield "frozen", "BatchNorm frozen", freeze_batch_norm_2d(copy.deepcopy(source))
    yield "fresh", "GroupNorm(32), fresh", group_norm_baseline(source)
    yield "copied", "GroupNorm(32), gamma and beta copied", group_norm_baseline(source, copy_affine=True)
    yield "identity", f"{label}, converted", convert(source, to, init="identity")
    yield "moments", f"{label}, init moments", convert(source, to, init="moments")
