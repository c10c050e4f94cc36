"""Everything that ``ilmconvert verify`` finds out about a checkpoint, in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ilmconvert._constants import __version__, shown_by
from ilmconvert.evaluation.compare import Fidelity, fidelity
from ilmconvert.evaluation.verify.criteria import FAILED, NOT_COMPARED, Check, Criteria, criteria_of, judge, verdict
from ilmconvert.evaluation.verify.initial_values import differing_initial_values
from ilmconvert.evaluation.verify.inputs import Sample
from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint, Skipped
from ilmconvert.evaluation.verify.source_model import SourceModel, differing_tensors


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        checkpoint, source, sample: what was compared, with what, on which images.
        fidelity: the measurement.
        criteria, checks: what is asked of this checkpoint, and what was found, limit by limit.
        verdict: "passed", "failed", "not judged" or, of a reconstructed source, "not compared".
        changed: tensors outside the norms that aren't the source's; None for a reconstructed source.
        skipped: norms that stayed, and why.
        caveats: what this comparison can't show.
        versions: of the libraries.
    """

    checkpoint: OpenedCheckpoint
    source: SourceModel
    sample: Sample
    fidelity: Fidelity
    criteria: Criteria
    checks: tuple[Check, ...]
    verdict: str
    changed: tuple[str, ...] | None
    skipped: tuple[Skipped, ...]
    caveats: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)

    _repr_html_ = shown_by("ilmconvert.report.notebook:verification")

    @property
    def failed(self) -> bool:
        """Whether a limit isn't met."""
        return self.verdict == FAILED

    @property
    def not_compared(self) -> bool:
        """Whether nothing was compared with the original source, since that wasn't available."""
        return self.verdict == NOT_COMPARED

    @property
    def statement(self) -> str:
        """What was asked of the checkpoint, and what it was verified against where that isn't the original source."""
        reconstructed = self.source.kind == "reconstructed" and not self.failed
        more = " Verified against a source rebuilt from the checkpoint; the original was not available."
        return self.criteria.text + (more if reconstructed else "")

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, but for infinities and NaN."""
        header = self.checkpoint.header
        found = self.fidelity.to_dict()
        images = [{**entry, **self.names(entry)} for entry in found["images"]]
        return {
            "checkpoint": str(self.checkpoint.path),
            "sha256": self.checkpoint.sha256,
            "model": self.checkpoint.name,
            "settings": dict(header["settings"]),
            "provenance": dict(header["provenance"]),
            "source": {"kind": self.source.kind, "description": self.source.description},
            "sample": {
                "description": self.sample.description,
                "random": self.sample.random,
                "unreadable": list(self.sample.unreadable),
            },
            "verdict": self.verdict,
            "criteria": asdict(self.criteria),
            "checks": [asdict(check) for check in self.checks],
            "caveats": list(self.caveats),
            **found,
            "images": images,
            "changed_tensors": None if self.changed is None else list(self.changed),
            "converted": self.checkpoint.converted,
            "skipped": [asdict(entry) for entry in self.skipped],
            "versions": self.versions,
        }

    def names(self, image: dict[str, Any]) -> dict[str, Any]:
        """The names that belong to the numbers in an entry of ``images``, where they are known."""
        named = {key: self.class_name(image[key]) for key in ("source_class", "converted_class", "label")}
        found: dict[str, Any] = {f"{key}_name": name for key, name in named.items() if name is not None}
        index = image["index"]
        return {**found, "name": self.sample.names[index]} if index < len(self.sample.names) else found

    def class_name(self, index: int | None) -> str | None:
        """What a class is called, where that is known."""
        names = self.sample.class_names
        return names[index] if index is not None and index < len(names) else None


def verify(
    checkpoint: OpenedCheckpoint,
    source: SourceModel,
    sample: Sample,
    *,
    max_error: float | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    min_ratio: float | None = None,
    layers: str | Sequence[str] = "norms",
    worst: int = 12,
    progress: Callable[[int], None] | bool | None = None,
) -> Verification:
    """Compare a checkpoint with its source on a sample, and judge it.

    Args:
        checkpoint: see :func:`ilmconvert.evaluation.verify.opened_checkpoint.open_checkpoint`.
        source: see :func:`ilmconvert.evaluation.verify.source_model.find_source_model`.
        sample: see :mod:`ilmconvert.evaluation.verify.inputs`.
        max_error, min_agreement, max_kl, min_ratio: limits in the place of the checkpoint's own.
        layers, worst, progress: see :func:`ilmconvert.evaluation.fidelity`.

    Raises:
        ModelError: the two can't be compared.
    """
    limits = {"max_error": max_error, "min_agreement": min_agreement, "max_kl": max_kl, "min_ratio": min_ratio}
    found = fidelity(source.model, checkpoint.model, sample.batches, layers=layers, worst=worst, progress=progress)
    # there is no agreement where there are no classes
    criteria = criteria_of(checkpoint, random=sample.random or found.classes is None, **limits)
    changed = None if source.kind == "reconstructed" else tuple(differing_tensors(source.model, checkpoint.model))
    unlike = differing_initial_values(source.model, checkpoint.model) if criteria.same_initial_values else None
    checks = tuple(judge(criteria, found, changed, unlike))
    return Verification(
        checkpoint=checkpoint,
        source=source,
        sample=sample,
        fidelity=found,
        criteria=criteria,
        checks=checks,
        verdict=verdict(criteria, checks, has_source=source.kind != "reconstructed"),
        changed=changed,
        skipped=tuple(checkpoint.skipped),
        caveats=(*source.caveats, *sample.caveats),
        versions={"ilmconvert": __version__, "torch": torch.__version__},
    )
