"""Everything that ``ilmconvert verify`` finds out about a checkpoint, in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ilmconvert._constants import __version__
from ilmconvert.evaluation.compare import Fidelity, fidelity
from ilmconvert.evaluation.verify.criteria import BROKEN, Check, Promise, judge, promise_of, verdict
from ilmconvert.evaluation.verify.find_source import Reference, differing_tensors
from ilmconvert.evaluation.verify.initial_values import unlike_start
from ilmconvert.evaluation.verify.inputs import Sample
from ilmconvert.evaluation.verify.opened_checkpoint import Skipped, Subject


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        subject, reference, sample: what was compared, with what, on which images.
        fidelity: the measurement.
        promise, checks: what holds for this checkpoint, limit by limit.
        verdict: "kept", "broken" or "not judged".
        changed: tensors outside the norms that aren't the source's; None for an implied source.
        skipped: norms that stayed, and why.
        caveats: what this comparison can't show.
        versions: of the libraries.
    """

    subject: Subject
    reference: Reference
    sample: Sample
    fidelity: Fidelity
    promise: Promise
    checks: tuple[Check, ...]
    verdict: str
    changed: tuple[str, ...] | None
    skipped: tuple[Skipped, ...]
    caveats: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a limit doesn't hold."""
        return self.verdict == BROKEN

    @property
    def statement(self) -> str:
        """What was promised, and by whose word it was judged where that isn't the source's."""
        implied = self.reference.kind == "implied" and not self.broken
        return (
            f"{self.promise.text} Judged by the checkpoint's own word, without its source."
            if implied
            else self.promise.text
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, but for infinities and NaN."""
        header = self.subject.header
        found = self.fidelity.to_dict()
        images = [{**entry, **self.names(entry)} for entry in found["images"]]
        return {
            "checkpoint": str(self.subject.path),
            "sha256": self.subject.sha256,
            "model": self.subject.name,
            "settings": dict(header["settings"]),
            "provenance": dict(header["provenance"]),
            "reference": {"kind": self.reference.kind, "description": self.reference.description},
            "sample": {"description": self.sample.description, "random": self.sample.random},
            "verdict": self.verdict,
            "promise": asdict(self.promise),
            "checks": [asdict(check) for check in self.checks],
            "caveats": list(self.caveats),
            **found,
            "images": images,
            "changed_tensors": None if self.changed is None else list(self.changed),
            "converted": self.subject.converted,
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
    subject: Subject,
    reference: Reference,
    sample: Sample,
    *,
    max_error: float | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    min_ratio: float | None = None,
    layers: str | Sequence[str] = "norms",
    worst: int = 12,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Compare a checkpoint with its reference on a sample, and judge it.

    Args:
        subject: see :func:`ilmconvert.evaluation.verify.opened_checkpoint.open_subject`.
        reference: see :func:`ilmconvert.evaluation.verify.find_source.find_reference`.
        sample: see :mod:`ilmconvert.evaluation.verify.inputs`.
        max_error, min_agreement, max_kl, min_ratio: limits in the place of those that the checkpoint promises.
        layers, worst, progress: see :func:`ilmconvert.evaluation.fidelity`.

    Raises:
        ModelError: the two can't be compared.
    """
    limits = {"max_error": max_error, "min_agreement": min_agreement, "max_kl": max_kl, "min_ratio": min_ratio}
    found = fidelity(reference.model, subject.model, sample.batches, layers=layers, worst=worst, progress=progress)
    # agreement can't be promised where there are no classes
    promise = promise_of(subject, random=sample.random or found.classes is None, **limits)
    changed = None if reference.kind == "implied" else tuple(differing_tensors(reference.model, subject.model))
    unlike = unlike_start(reference.model, subject.model) if promise.same_start else None
    checks = tuple(judge(promise, found, changed, unlike))
    return Verification(
        subject=subject,
        reference=reference,
        sample=sample,
        fidelity=found,
        promise=promise,
        checks=checks,
        verdict=verdict(promise, checks),
        changed=changed,
        skipped=tuple(subject.skipped),
        caveats=(*reference.caveats, *sample.caveats),
        versions={"ilmconvert": __version__, "torch": torch.__version__},
    )
