"""What a conversion promises, and whether a measurement keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ilmconvert.evaluation.compare import Fidelity
from ilmconvert.evaluation.layer_metrics import worst_layers
from ilmconvert.evaluation.verify.opened_checkpoint import Subject

#: Largest relative error of an exact conversion that counts as rounding, by the type of the checkpoint.
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
EXACT_AGREEMENT, BOUNDED_AGREEMENT = 0.999, 0.99
#: Least signal-to-error ratio in decibels of every layer by itself in an exact conversion in single precision; rounding
#: leaves 100 and more. It shows a change in one layer that hardly moves the outputs.
EXACT_RATIO = 60.0
KEPT, BROKEN, NOT_JUDGED = "kept", "broken", "not judged"


@dataclass(frozen=True)
class Promise:
    """Limits, None where there is none, and what they stand for."""

    text: str
    max_error: float | None = None
    min_agreement: float | None = None
    max_kl: float | None = None
    min_ratio: float | None = None
    same_tensors: bool = False
    same_start: bool = False

    @property
    def limits(self) -> tuple[float, ...]:
        """Those of what is computed."""
        found = (self.max_error, self.min_agreement, self.max_kl, self.min_ratio)
        return tuple(limit for limit in found if limit is not None)


@dataclass(frozen=True)
class Check:
    """One limit and what was measured, as text, and whether it holds."""

    name: str
    measured: str
    limit: str
    holds: bool


def promise_of(
    subject: Subject,
    *,
    random: bool,
    max_error: float | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    min_ratio: float | None = None,
) -> Promise:
    """What the checkpoint's settings promise; limits that are given stand in the place of its own.

    An exact start (``init="identity"``, no bound, not trained since) promises the source's function up to rounding; a
    bounded one the classes of ordinary images. A start from moments, plain layers among them, promises that its
    norms hold what the source's statistics give and that all else is the source's; once it is calibrated, the latter
    only. Trained checkpoints promise nothing. Agreement on random inputs (``random``) is only judged if asked for.
    """
    own = _of_settings(subject)
    asked = any(limit is not None for limit in (max_error, min_agreement, max_kl, min_ratio))
    return replace(
        own,
        text=f"{own.text} Judged by the limits that were asked for." if asked and not own.limits else own.text,
        max_error=own.max_error if max_error is None else max_error,
        min_agreement=(None if random else own.min_agreement) if min_agreement is None else min_agreement,
        max_kl=max_kl,
        min_ratio=own.min_ratio if min_ratio is None else min_ratio,
    )


def _of_settings(subject: Subject) -> Promise:
    settings = subject.header["settings"]
    init = settings.get("init")
    if subject.fine_tuned:
        return Promise("It was fine-tuned, so it is meant to differ from its source: no promise.")
    if init == "moments":
        return _of_moments(subject)
    if init != "identity":
        return Promise("The file doesn't name its start: no promise.")
    if settings.get("collapse_deviation"):
        text = "Its plain layers stand for ILM Norms that were nearly constant: no promise how near they are."
        return Promise(text, same_tensors=True)
    if subject.bounded:
        text = "Exact start with a bound: images like those that it was trained on keep their class."
        return Promise(text, min_agreement=BOUNDED_AGREEMENT, same_tensors=True)
    rounding = ROUNDING.get(subject.dtype, ROUNDING[torch.bfloat16])
    half = subject.dtype in (torch.float16, torch.bfloat16)
    text = "Exact start: it computes what its source computes, up to rounding."
    if half:
        return Promise(text, rounding, same_tensors=True)
    return Promise(text, rounding, EXACT_AGREEMENT, min_ratio=EXACT_RATIO, same_tensors=True)


def _of_moments(subject: Subject) -> Promise:
    """Of layers that can't be exact: what the conversion left alone, and the values that it gave them."""
    layers = "Plain GroupNorm" if subject.plain else "ILM Norms without a restoring path"
    near = "near its source's function, without a promise how near"
    if subject.collapsed:
        return Promise(f"{layers}, collapsed from a start from moments: {near}.", same_tensors=True)
    if subject.calibrated:
        return Promise(f"{layers}, started from moments and calibrated: {near}.", same_tensors=True)
    text = f"{layers}, started from moments: {near}. Calibration and distillation bring it nearer."
    return Promise(text, same_tensors=True, same_start=True)


def judge(
    promise: Promise, found: Fidelity, changed: Sequence[str] | None, unlike: Sequence[str] | None = None
) -> list[Check]:
    """Every limit of the promise against the measurement; that the outputs are finite is always one.

    Args:
        promise: the limits.
        found: the measurement.
        changed: tensors outside the norms that aren't the source's; None where there is no source to tell by.
        unlike: norms without the values of a start from the source's moments; None where that can't be told.
    """
    bad = found.not_finite
    text = f"not for {bad} of {found.count}" if bad else f"all of {found.count}"
    checks = [Check("outputs are finite", text, "all", bad == 0)]
    if promise.same_tensors and changed is not None:
        checks.append(_all_are("weights outside the norms are the source's", changed))
    if promise.same_start and unlike is not None:
        checks.append(_all_are("norms hold what the source's statistics give", unlike))
    if promise.max_error is not None:
        error, limit = found.relative_error, promise.max_error
        name = "largest error over the largest output"
        checks.append(Check(name, f"{error:.2g}", f"at most {limit:g}", error <= limit))
    if promise.min_agreement is not None:
        agreement, limit = found.top1_agreement, promise.min_agreement
        text = "not measured: no logits" if agreement is None else f"{100 * agreement:.2f} %"
        holds = agreement is not None and agreement >= limit
        checks.append(Check("same first class as the source", text, f"at least {100 * limit:g} %", holds))
    if promise.max_kl is not None:
        text = "not measured: no logits" if found.kl is None else f"{found.kl:.2g} nats"
        holds = found.kl is not None and found.kl <= promise.max_kl
        checks.append(Check("mean KL divergence", text, f"at most {promise.max_kl:g} nats", holds))
    alone = worst_layers(found.layers, 1, alone=True)
    if promise.min_ratio is not None and alone:
        ratio = alone[0].own_snr
        text = f"{alone[0].name or 'the root'} {ratio:.0f} dB"
        holds = ratio is not None and ratio >= promise.min_ratio
        checks.append(
            Check("signal over error of every layer by itself", text, f"at least {promise.min_ratio:g} dB", holds)
        )
    return checks


def _all_are(name: str, exceptions: Sequence[str]) -> Check:
    text = f"{len(exceptions)} not, first {exceptions[0] or 'the root'}" if exceptions else "all"
    return Check(name, text, "all", not exceptions)


def verdict(promise: Promise, checks: Sequence[Check]) -> str:
    """Whether the promise is "kept", "broken", or "not judged" where nothing was promised and nothing asked for."""
    if not all(check.holds for check in checks):
        return BROKEN
    return KEPT if promise.limits else NOT_JUDGED
