"""What was measured, as a label and a text each; None where there is no such number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ilmconvert.calibration.calibrate import Calibration
from ilmconvert.evaluation.accuracy import Evaluation
from ilmconvert.evaluation.compare import Fidelity
from ilmconvert.evaluation.layer_metrics import LayerFidelity, worst_layers
from ilmconvert.evaluation.robustness import Condition
from ilmconvert.evaluation.verify.verification import Verification
from ilmconvert.report.tables import Table
from ilmconvert.report.text import NONE, decibels, duration, share

Facts = list[tuple[str, str | None]]
CALIBRATION_COLUMNS = ("values", "same class", "KL, nats", "error of the outputs", "")
_WORST = 3


def evaluation_facts(result: Evaluation, against: str | None) -> Facts:
    """An evaluation; ``against`` is what the other model is called."""
    percent = partial(share, digits=2)
    return [
        ("images", f"{result.count}" + ("" if result.labelled == result.count else f", {result.labelled} labelled")),
        ("top-1", percent(result.top1, result.top1_interval)),
        ("top-5", percent(result.top5)),
        ("loss", None if result.loss is None else f"{result.loss:.4f} nats"),
        ("calibration error", percent(result.calibration_error)),
        ("not finite", f"{result.not_finite} images" if result.not_finite else None),
        (f"same class as {against}", percent(result.agreement, result.agreement_interval)),
        (f"top-1 of {against}", percent(result.against_top1)),
        ("difference", percent(result.difference, result.difference_interval, sign="+")),
        ("speed", None if result.images_per_second is None else f"{result.images_per_second:.1f} images a second"),
    ]


def corrupted_table(found: Sequence[tuple[Condition, Evaluation]]) -> Table:
    """A row for each corruption and severity, and the means of all; the other model's columns where there is one."""
    rows = [(condition.name, str(condition.severity), *_corrupted_cells(each)) for condition, each in found]
    if len(found) > 1:
        names = ("top1", "against_top1", "agreement", "difference")
        top1, other, same, difference = (_mean([getattr(each, name) for _, each in found]) for name in names)
        rows.append(("mean", "", *_cells(top1, other, same, difference, None)))
    columns = ("corruption", "severity", "top-1", "the other", "difference (95 %), points", "same class")
    return Table(columns, rows).without_empty_columns()


def _corrupted_cells(found: Evaluation) -> tuple[str, ...]:
    return _cells(found.top1, found.against_top1, found.agreement, found.difference, found.difference_interval)


def _cells(
    top1: float | None,
    other: float | None,
    same: float | None,
    difference: float | None,
    interval: tuple[float, float] | None,
) -> tuple[str, ...]:
    ends = "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    points = None if difference is None else f"{100 * difference:+.1f}{ends}"
    unlabelled = share(same) if top1 is None else None
    return tuple(text or NONE for text in (share(top1), share(other), points, unlabelled))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def calibration_rows(found: Calibration) -> list[tuple[str, ...]]:
    """What each step of a calibration came to on held-out samples, and what was kept; under ``CALIBRATION_COLUMNS``."""
    return [
        (
            name,
            share(score.agreement) or NONE,
            NONE if score.kl is None else f"{score.kl:.3f}",
            f"{score.error:.3f}",
            "kept" if name == found.kept else "",
        )
        for name, score in found.scores.items()
    ]


def verification_facts(result: Verification) -> Facts:
    """A verification: the sample, what was measured, and the norms."""
    before, after = fidelity_facts(result.fidelity)
    norms = ("norms", f"{len(result.checkpoint.converted)} converted, {len(result.skipped)} stay")
    return [("compared on", result.sample.description), *before, norms, *after]


def fidelity_facts(found: Fidelity) -> tuple[Facts, Facts]:
    """A comparison of two networks: their outputs, and what the conversion costs."""
    outputs: Facts = [
        ("top-1 agreement", share(found.top1_agreement, found.top1_interval)),
        ("top-5 agreement", share(found.top5_agreement)),
        ("KL divergence", None if found.kl is None else f"{found.kl:.2g} nats, largest {found.largest_kl:.2g}"),
        ("error of the outputs", f"largest {found.largest_error:.2g}, mean {found.mean_error:.2g}"),
        ("over the largest output", f"{found.relative_error:.2g}"),
        ("accuracy, source", share(found.source_top1)),
        ("accuracy, converted", share(found.converted_top1, found.converted_top1_interval)),
        ("worst layers", _worst(found.layers)),
        ("worst by themselves", _worst(found.layers, alone=True)),
    ]
    cost = found.cost
    if cost is None:
        return outputs, []
    return outputs, [
        ("parameters", f"{cost.source_parameters:,} before, {cost.converted_parameters:,} after"),
        (
            f"forward of {cost.batch_size}, {cost.device}",
            f"{duration(cost.source_seconds)} before, {duration(cost.converted_seconds)} after "
            f"({cost.time_ratio:.2f} times)",
        ),
    ]


def _worst(layers: Sequence[LayerFidelity], *, alone: bool = False) -> str | None:
    found = worst_layers(layers, _WORST, alone=alone)
    return ", ".join(f"{layer.name} {decibels(layer.own_snr if alone else layer.snr)}" for layer in found) or None
