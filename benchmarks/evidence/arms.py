"""The arms of the protocol: which network is trained, on what input, with which of the library's recipes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert import convert
from ilmconvert.calibration.bound import calibrate_bound
from ilmconvert.calibration.references import update_references
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

FROZEN = "frozen-bn"
WARM = "-warm"  # ends the name of an arm with a warm-up
ADAMW = "-adamw-fast" + WARM  # ends the names of the arms with AdamW that are compared with each other
STANDARDISED = "frozen-bn-standardised"
FIRST_NORM = "ilm-in-first-standardised" + ADAMW
UNIT = "frozen-bn-unit" + ADAMW
PART, PART_STANDARDISED = "ilm-gn-decayed" + ADAMW, "ilm-gn-decayed-standardised" + ADAMW
#: The arms of the recipes that are compared with the strongest baselines, by what they are called.
WINNERS = {"first-norm": FIRST_NORM, "anneal-part": PART, "anneal-part, standardised": PART_STANDARDISED}
_BATCH = 16
_REFERENCES = 128  # images for the references, as the recipe ``anneal`` has it

Build = Callable[[nn.Module, Tensor], nn.Module]  # of the source and prepared training images (N, 3, H, W)


@dataclass(frozen=True)
class Arm:
    """One line of the tables.

    Attributes:
        title: in the tables.
        build: the network that is trained; the source that it gets is its own copy.
        standardised: whether the network sees standardised images.
        deviation: of standardised images; None is the mean of the training images'.
        recipe: the fields of the recipe that make this arm.
        freeze_share: the part of the run, from its start, in which only norms and head train.
        warmup_share: the part in which the rate rises from zero.
        rate_scale: what the rates of the selection are multiplied by.
        gate_penalty: of learned gates on the restoring paths; None is no gates.
    """

    title: str
    build: Build
    standardised: bool = False
    deviation: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    freeze_share: float = 0.0
    warmup_share: float = 0.0
    rate_scale: float = 1.0
    gate_penalty: float | None = None


@torch.no_grad()
def _reestimated(source: nn.Module, images: Tensor) -> nn.Module:
    """Running statistics from these images: the average over batches, in training mode."""
    norms = [m for m in source.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for batch in images.split(_BATCH):
        source(batch)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return source.eval()


def _converted(to: str, **settings: Any) -> Build:
    def build(source: nn.Module, images: Tensor) -> nn.Module:
        return convert(source, to, **settings)

    return build


def _ranged(to: str) -> Build:
    def build(source: nn.Module, images: Tensor) -> nn.Module:
        network = convert(source, to)
        calibrate_bound(network, images.split(_BATCH))
        return network

    return build


def _referenced(to: str) -> Build:
    def build(source: nn.Module, images: Tensor) -> nn.Module:
        network = convert(source, to)
        update_references(network, images[:_REFERENCES].split(_BATCH))
        return network

    return build


def _same(source: nn.Module, images: Tensor) -> nn.Module:
    return copy.deepcopy(source)


def _group_norm(source: nn.Module, images: Tensor) -> nn.Module:
    return group_norm_baseline(source, copy_affine=True)


_ANNEAL = {"anneal": "cosine", "anneal_end": 0.25}
_ADAMW: dict[str, Any] = {"recipe": {"opt": "adamw"}, "rate_scale": 0.005}
_ADAMW_FAST = _ADAMW | {"rate_scale": 0.01}
_DECAYED = {"anneal": "rate", "anneal_to": 0.368}  # 1 / e


def _with(settings: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    return settings | {"recipe": settings["recipe"] | recipe}


_FIRST = _converted("ilm_in", init="moments", first_only=True)  # the others stay frozen BatchNorm
_COLD = {
    FROZEN: Arm("frozen BN", _same),
    "ilm-gn-range": Arm("ILM-GN, range calibrated first", _ranged("ilm_gn")),
    STANDARDISED: Arm("frozen BN, standardised input", _same, standardised=True),
    "ilm-gn": Arm("ILM-GN, exact start", _converted("ilm_gn")),
    "frozen-bn-reestimated": Arm("frozen BN, re-estimated", _reestimated),
    "train-bn": Arm("BN in training", _same, recipe={"freeze_batch_norm": False}),
    "group-norm": Arm("GroupNorm swapped", _group_norm),
    "ilm-ln-range": Arm("ILM-LN, range calibrated first", _ranged("ilm_ln")),
    "ilm-in-range": Arm("ILM-IN, range calibrated first", _ranged("ilm_in")),
    "ilm-gn-bound": Arm("ILM-GN, bound 2 everywhere", _converted("ilm_gn", restore_bound=2.0)),
    "ilm-ln": Arm("ILM-LN, exact start", _converted("ilm_ln")),
    "ilm-in": Arm("ILM-IN, exact start", _converted("ilm_in")),
    "ilm-gn-standardised": Arm("ILM-GN, standardised input", _converted("ilm_gn"), standardised=True),
    "ilm-gn-norm": Arm("ILM-GN, norms and head only", _converted("ilm_gn"), recipe={"train": "norm"}),
    "ilm-gn-freeze": Arm("ILM-GN, freeze then full", _converted("ilm_gn"), freeze_share=1 / 3),
    "ilm-ln-anneal": Arm("ILM-LN, annealed", _referenced("ilm_ln"), recipe=_ANNEAL),
    "ilm-ln-moments": Arm("ILM-LN, paper's layer from moments", _converted("ilm_ln", init="moments")),
    "ilm-in-first": Arm("ILM-IN in the first norm", _FIRST),
    "ilm-in-first-standardised": Arm("ILM-IN in the first norm, standardised input", _FIRST, standardised=True),
    "frozen-bn-adamw": Arm("frozen BN, AdamW", _same, **_ADAMW),
    "ilm-gn-adamw": Arm("ILM-GN, exact start, AdamW", _converted("ilm_gn"), **_ADAMW),
    "frozen-bn-adamw-fast": Arm("frozen BN, faster AdamW", _same, **_ADAMW_FAST),
    "frozen-bn-standardised-adamw-fast": Arm(
        "frozen BN, standardised input, faster AdamW", _same, standardised=True, **_ADAMW_FAST
    ),
    "ilm-in-first-standardised-adamw-fast": Arm(
        "ILM-IN in the first norm, standardised input, faster AdamW", _FIRST, standardised=True, **_ADAMW_FAST
    ),
    "frozen-bn-unit-adamw-fast": Arm(
        "frozen BN, input standardised to 1, faster AdamW", _same, standardised=True, deviation=1.0, **_ADAMW_FAST
    ),
    "ilm-gn-decayed-standardised-adamw-fast": Arm(
        "ILM-GN, restoring path decays, standardised input, faster AdamW",
        _converted("ilm_gn"),
        standardised=True,
        **_with(_ADAMW_FAST, _DECAYED),
    ),
    "frozen-bn-reestimated-adamw-fast": Arm("frozen BN, re-estimated, faster AdamW", _reestimated, **_ADAMW_FAST),
    "ilm-gn-adamw-fast": Arm("ILM-GN, exact start, faster AdamW", _converted("ilm_gn"), **_ADAMW_FAST),
    "ilm-gn-wide-adamw-fast": Arm(
        "ILM-GN, wide meta-network, faster AdamW",
        _converted("ilm_gn", key_group_size=4, reduction=1),
        **_ADAMW_FAST,
    ),
    "ilm-gn-decayed-adamw-fast": Arm(
        "ILM-GN, restoring path decays, faster AdamW", _converted("ilm_gn"), **_with(_ADAMW_FAST, _DECAYED)
    ),
    "ilm-gn-gated-adamw-fast": Arm(
        "ILM-GN, restoring path behind learned gates, faster AdamW",
        _converted("ilm_gn"),
        gate_penalty=0.05,
        **_ADAMW_FAST,
    ),
    "ilm-gn-decayed": Arm("ILM-GN, restoring path decays", _converted("ilm_gn"), recipe=_DECAYED),
    "ilm-gn-decayed-standardised": Arm(
        "ILM-GN, restoring path decays, standardised input", _converted("ilm_gn"), standardised=True, recipe=_DECAYED
    ),
    "train-bn-fast": Arm("BN in training, faster", _same, recipe={"freeze_batch_norm": False}, rate_scale=10.0),
}
_WARMED = (
    FROZEN,
    "ilm-in-first",
    STANDARDISED,
    "ilm-in-first-standardised",
    "ilm-gn",
    "frozen-bn-adamw",
    "frozen-bn-adamw-fast",
    "frozen-bn-standardised-adamw-fast",
    "ilm-in-first-standardised-adamw-fast",
    "ilm-gn-range",
    "group-norm",
    "train-bn-fast",
    "frozen-bn-reestimated-adamw-fast",
    "ilm-gn-adamw-fast",
    "ilm-gn-wide-adamw-fast",
    "ilm-gn-decayed-adamw-fast",
    "frozen-bn-unit-adamw-fast",
    "ilm-gn-decayed-standardised-adamw-fast",
    "ilm-gn-decayed",
    "ilm-gn-decayed-standardised",
    "ilm-gn-gated-adamw-fast",
)


def _warmed(arm: Arm) -> Arm:
    return replace(arm, title=f"{arm.title}, warm-up", warmup_share=0.1)


#: In the order in which they are run.
ARMS = _COLD | {name + WARM: _warmed(_COLD[name]) for name in _WARMED}
