"""The calibration of a whole network, layer after layer, kept only if it helps on held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ilmconvert._constants import shown_by
from ilmconvert.calibration.batches import divide, prepared
from ilmconvert.calibration.fit import Values, fit_meta, match_constants, rescaling, respread, weighted_error
from ilmconvert.calibration.layers import Pair, pairs_of, restore, snapshot, source_targets
from ilmconvert.calibration.score import Score, run, score
from ilmconvert.calibration.statistics import Moments, Statistics, joined, moments
from ilmconvert.calibration.walk import walk
from ilmconvert.errors import CalibrationError
from ilmconvert.evaluation.progress_bar import count_bar
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.paused_forward import Inputs
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped

START, CONSTANTS, DAMPED, META_NETWORK = "start", "constants", "damped constants", "meta-network"
RIDGE = 0.1  # the start counts like a tenth of the images
DAMPING = 0.5  # of the way from the start: small groups leave a layer little that it could match its source by
DECAYS = (1e-3, 1e-4)  # of the meta-network, tried on each layer
MARGIN = 0.9  # of the error of the constants: the meta-network has to be so much better on the held-out samples
SHARED = "runs more than once in a pass, so no one input determines it"
NEVER_RUN = "doesn't run in evaluation mode"


class Step(NamedTuple):
    """One way to fit all layers."""

    name: str
    damping: float = 0.0
    decays: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerFit:
    """One layer.

    Attributes:
        name: its dotted path.
        before, after: squared distance of its output to its target over the target's variance, averaged over
            channels, on the held-out samples, with the layers before it calibrated already.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` did.

    Attributes:
        kept: "start", "constants", "damped constants" or "meta-network": whose values the model has now.
        scores: of each of these on the held-out batches: agreement with the source, KL divergence, outputs' error.
        layers: the fit of every layer, in execution order; empty if the start was kept.
        skipped: layers that weren't fitted, with the reason.
        fitted_on, held_out: how many samples.
    """

    kept: str
    scores: dict[str, Score]
    layers: tuple[LayerFit, ...]
    skipped: dict[str, str]
    fitted_on: int
    held_out: int

    _repr_html_ = shown_by("ilmconvert.report.notebook:calibration")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "scores": {name: s._asdict() for name, s in self.scores.items()}}


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    source: nn.Module,
    meta: bool = True,
    holdout: float = 0.25,
    progress: Callable[[int, int, str], None] | bool | None = None,
) -> Calibration:
    """Fit the layers of ``model`` to what the same layers of ``source`` give on a few unlabelled batches, in place.

    For layers that can't start as the identity: the paper's layer or plain GroupNorm from moments, or groups that
    changed. Layer after layer in execution order, each on inputs that the layers before it, already calibrated, make:
    weight and bias in closed form, so that every channel gets the mean and variance that it has in the source, or
    with half that change of the weight; then the meta-network by L-BFGS, so that every sample does. Only means and
    variances per sample and channel are kept. Part of the batches is held out: it chooses the decay of each layer's
    meta-network, and there the next values replace what is kept only if their KL divergence from the source is lower
    and their agreement isn't. A failure leaves the model as it was.

    All batches wait inside the model at once, so that one pass does for all layers: memory is that of one evaluation
    pass over all of them together.

    Args:
        model: with layers of ``init="moments"``, or plain ones; not the restoring ones, which need none.
        batches: tensors, or tuples and lists whose first item is what the model takes (the rest, labels, is ignored).
            Some tens of images of the kind that the model will see, in several batches and in random order.
        source: what ``model`` was converted from; the layers have the same names.
        meta: fit the meta-networks, too.
        holdout: the share of the batches (of the samples, for a single batch) that is held out.
        progress: called after each layer with the layers done, all of them, and what is fitted (see ``kept``); True
            shows a bar.

    Raises:
        CalibrationError: no layer to fit, too few samples, or batches that don't go through the models.
        ConversionError: the model is wrapped or compiled.

    >>> from ilmconvert import convert
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    >>> _ = net[1].running_mean.normal_()
    >>> calibrate(convert(net, "ln"), [torch.randn(4, 3, 8, 8) for _ in range(4)], source=net).held_out
    4
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout={holdout} must be a share between 0 and 1")
    refuse_wrapped(model)
    pairs, skipped = pairs_of(model, source)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    fitting, held_out = divide(prepared(batches, device), holdout)
    with count_bar(progress, "layers") as told, evaluating(model, source):
        everything = [*fitting.inputs, *held_out.inputs]
        targets, calls = source_targets(source, pairs, everything)
        skipped |= {name: SHARED if calls[name] else NEVER_RUN for name in pairs if calls[name] != 1}
        pairs = {name: pair for name, pair in pairs.items() if name not in skipped}
        expected = run(source, held_out.inputs)
        start = snapshot(pairs)
        scores = {START: score(run(model, held_out.inputs), expected)}
        kept, best, layers = START, start, tuple[LayerFit, ...]()
        try:
            for step in _steps(pairs, meta):
                restore(pairs, start)
                fits = _fit_all(model, pairs, targets, everything, fitting.samples, step, told)
                scores[step.name] = score(run(model, held_out.inputs), expected)
                if scores[step.name].better_than(scores[kept]):
                    kept, best, layers = step.name, snapshot(pairs), fits
        except BaseException:
            restore(pairs, start)
            raise
        restore(pairs, best)
    if kept != START:
        note(model, settings={**noted(model).settings, "calibrated": kept})
    return Calibration(kept, scores, layers, skipped, fitting.samples, held_out.samples)


def _steps(pairs: Mapping[str, Pair], meta: bool) -> list[Step]:
    if not pairs:
        return []
    steps = [Step(CONSTANTS), Step(DAMPED, DAMPING)]
    return [*steps, Step(META_NETWORK, decays=DECAYS)] if meta and any(p.has_meta for p in pairs.values()) else steps


def _fit_all(
    model: nn.Module,
    pairs: Mapping[str, Pair],
    targets: Mapping[str, Moments],
    batches: list[Inputs],
    fitted_on: int,
    step: Step,
    progress: Callable[..., None] | None,
) -> tuple[LayerFit, ...]:
    """One walk through the model in which every layer is fitted, as it is reached, on the first ``fitted_on`` samples.

    Of the constants and the meta-networks of all decays it gets what is nearest to its target on the other samples.
    """
    fits: list[LayerFit] = []

    def visit(name: str, inputs: list[Tensor]) -> None:
        pair, x = pairs[name], joined([moments(t) for t in inputs])
        if x.mean.shape != targets[name].mean.shape:
            raise CalibrationError(
                f"{name} gets inputs of another shape than in the source; give the model's source (--source)"
            )
        s = pair.statistics(x, targets[name])
        held_out = s.part(slice(fitted_on, None))
        start = {key: t.detach().cpu().double() for key, t in pair.values().items()}
        candidates = _candidates(pair, s.part(slice(fitted_on)), start, step)
        errors = [_error(pair, values, held_out) for values in candidates]
        least = min(range(len(errors)), key=errors.__getitem__)
        if errors[least] > MARGIN * errors[0]:
            least = 0
        pair.write(candidates[least])
        fits.append(LayerFit(name, _error(pair, start, held_out), errors[least]))
        if progress is not None:
            progress(len(fits), len(pairs), step.name)

    walk(model, {name: pair.layer for name, pair in pairs.items()}, batches, visit)
    return tuple(fits)


def _candidates(pair: Pair, s: Statistics, start: Values, step: Step) -> list[Values]:
    weight, bias = match_constants(s, start["weight"], start["bias"], RIDGE, step.damping)
    constants = {**start, "weight": weight, "bias": bias}
    decays = step.decays if pair.has_meta else ()
    fitted = [fit_meta(s, constants, correction=pair.correction, decay=decay) for decay in decays]
    return [constants, *(respread(s, values, correction=pair.correction) for values in fitted)]


def _error(pair: Pair, values: Values, s: Statistics) -> float:
    omega, beta = values["weight"], values["bias"]
    if pair.has_meta:
        omega, beta = rescaling(values, *s.key_features(values["encoder"].shape[1], pair.correction))
    return weighted_error(s, omega, beta).item()
