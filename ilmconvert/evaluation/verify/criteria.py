"""The criteria that a checkpoint has to meet, from what it says of its conversion, and whether a measurement does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ilmconvert.evaluation.compare import Fidelity
from ilmconvert.evaluation.layer_metrics import worst_layers
from ilmconvert.evaluation.tolerances import BOUNDED_AGREEMENT, EXACT_AGREEMENT, EXACT_RATIO, ROUNDING
from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint

PASSED, FAILED, NOT_JUDGED, NOT_COMPARED = "passed", "failed", "not judged", "not compared"


@dataclass(frozen=True)
class Criteria:
    """Limits, None where there is none, and what they stand for."""

    text: str
    max_error: float | None = None
    min_agreement: float | None = None
    max_kl: float | None = None
    min_ratio: float | None = None
    same_tensors: bool = False
    same_initial_values: bool = False

    @property
    def limits(self) -> tuple[float, ...]:
        """Those of what is computed."""
        found = (self.max_error, self.min_agreement, self.max_kl, self.min_ratio)
        return tuple(limit for limit in found if limit is not None)


@dataclass(frozen=True)
class Check:
    """One limit and what was measured, as text, and whether it was met."""

    name: str
    measured: str
    limit: str
    passed: bool


def criteria_of(
    checkpoint: OpenedCheckpoint,
    *,
    random: bool,
    max_error: float | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    min_ratio: float | None = None,
) -> Criteria:
    """The criteria that follow from the checkpoint's settings; limits that are given stand in the place of its own.

    An exact start (``init="identity"``, no bound, not trained since) has to compute the source's function up to
    rounding, a bounded one to keep the classes of ordinary images. Of layers that were initialised from the running
    statistics alone (``init="moments"``, plain ones among them), the norms have to hold what these statistics give,
    and all else what the source passed; once they are calibrated, the latter only. A trained checkpoint is measured
    without a limit. Agreement on random inputs (``random``) is only judged if asked for.
    """
    own = _of_settings(checkpoint)
    asked = any(limit is not None for limit in (max_error, min_agreement, max_kl, min_ratio))
    return replace(
        own,
        text=f"{own.text} Judged by the limits that were asked for." if asked and not own.limits else own.text,
        max_error=own.max_error if max_error is None else max_error,
        min_agreement=(None if random else own.min_agreement) if min_agreement is None else min_agreement,
        max_kl=max_kl,
        min_ratio=own.min_ratio if min_ratio is None else min_ratio,
    )


def _of_settings(checkpoint: OpenedCheckpoint) -> Criteria:
    settings = checkpoint.header["settings"]
    init = settings.get("init")
    if checkpoint.fine_tuned:
        return Criteria("It was fine-tuned, so it is meant to differ from its source: no limit.")
    if init == "moments":
        return _of_moments(checkpoint)
    if init != "identity":
        return Criteria("The file doesn't say how its layers were initialised: no limit.")
    if settings.get("collapse_deviation"):
        text = "Its plain layers stand for ILM Norms that were nearly constant: no limit on how near they are."
        return Criteria(text, same_tensors=True)
    if checkpoint.bounded:
        text = "Exact start with a bound: images like those that it was trained on keep their class."
        return Criteria(text, min_agreement=BOUNDED_AGREEMENT, same_tensors=True)
    rounding = ROUNDING.get(checkpoint.dtype, ROUNDING[torch.bfloat16])
    half = checkpoint.dtype in (torch.float16, torch.bfloat16)
    text = "Exact start: it computes what its source computes, up to rounding."
    if half:
        return Criteria(text, rounding, same_tensors=True)
    return Criteria(text, rounding, EXACT_AGREEMENT, min_ratio=EXACT_RATIO, same_tensors=True)


def _of_moments(checkpoint: OpenedCheckpoint) -> Criteria:
    """Of layers that can't be exact: what the conversion left alone, and the values that it gave them."""
    layers = "Plain GroupNorm" if checkpoint.plain else "ILM Norms without a restoring path"
    near = "near its source's function, without a limit on how near"
    if checkpoint.collapsed:
        return Criteria(
            f"{layers}, collapsed from layers initialised from running statistics: {near}.", same_tensors=True
        )
    if checkpoint.calibrated:
        return Criteria(f"{layers}, initialised from running statistics and calibrated: {near}.", same_tensors=True)
    text = f"{layers}, initialised from running statistics: {near}. Calibration and distillation bring it nearer."
    return Criteria(text, same_tensors=True, same_initial_values=True)


def judge(
    criteria: Criteria, found: Fidelity, changed: Sequence[str] | None, unlike: Sequence[str] | None = None
) -> list[Check]:
    """Every limit against the measurement; that the outputs are finite is always one.

    Args:
        criteria: the limits.
        found: the measurement.
        changed: tensors outside the norms that aren't the source's; None where there is no source to tell by.
        unlike: norms without the values that the source's running statistics give; None where that can't be told.
    """
    bad = found.not_finite
    text = f"not for {bad} of {found.count}" if bad else f"all of {found.count}"
    checks = [Check("outputs are finite", text, "all", bad == 0)]
    if criteria.same_tensors and changed is not None:
        checks.append(_all_are("weights outside the norms are the source's", changed))
    if criteria.same_initial_values and unlike is not None:
        checks.append(_all_are("norms hold what the source's statistics give", unlike))
    if criteria.max_error is not None:
        error, limit = found.relative_error, criteria.max_error
        name = "largest error over the largest output"
        checks.append(Check(name, f"{error:.2g}", f"at most {limit:g}", error <= limit))
    if criteria.min_agreement is not None:
        agreement, limit = found.top1_agreement, criteria.min_agreement
        text = "not measured: no logits" if agreement is None else f"{100 * agreement:.2f} %"
        passed = agreement is not None and agreement >= limit
        checks.append(Check("same first class as the source", text, f"at least {100 * limit:g} %", passed))
    if criteria.max_kl is not None:
        text = "not measured: no logits" if found.kl is None else f"{found.kl:.2g} nats"
        passed = found.kl is not None and found.kl <= criteria.max_kl
        checks.append(Check("mean KL divergence", text, f"at most {criteria.max_kl:g} nats", passed))
    alone = worst_layers(found.layers, 1, alone=True)
    if criteria.min_ratio is not None and alone:
        ratio = alone[0].own_snr
        text = f"{alone[0].name or 'the root'} {ratio:.0f} dB"
        passed = ratio is not None and ratio >= criteria.min_ratio
        checks.append(
            Check("signal over error of every layer by itself", text, f"at least {criteria.min_ratio:g} dB", passed)
        )
    return checks


def _all_are(name: str, exceptions: Sequence[str]) -> Check:
    text = f"{len(exceptions)} not, first {exceptions[0] or 'the root'}" if exceptions else "all"
    return Check(name, text, "all", not exceptions)


def verdict(criteria: Criteria, checks: Sequence[Check], *, has_source: bool = True) -> str:
    """What the checks come to.

    "passed" or "failed"; "not judged" where the criteria set no limit on what is computed; "not compared" where the
    checks passed without the source (``has_source``), against one that the checkpoint itself tells.
    """
    if not all(check.passed for check in checks):
        return FAILED
    if not has_source:
        return NOT_COMPARED
    return PASSED if criteria.limits else NOT_JUDGED
