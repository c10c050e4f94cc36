"""What became of each model, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: From the line of a model; the first three are right, "failed" is a fault.
OUTCOMES = {
    "exact": "computes the same, survives its checkpoint, trains a step",
    "exact but for refused layers": "the same with the layers excluded that the target's groups don't fit",
    "refused": "no layer fits the target's groups",
    "planned": "too large to run: converted without values",
    "failed": "anything else",
    "nothing to convert": "holds no norm of a kind that is converted; counts as not tried",
}


def outcome(line: Mapping[str, Any]) -> str:
    """The entry of ``OUTCOMES`` that a line of :func:`ilmconvert.testing.run_model` means.

    >>> outcome({"error": None, "converted": 0, "refused": 0, "executed": False})
    'nothing to convert'
    """
    if line["error"] is not None:
        return "failed"
    if not line["converted"]:
        return "refused" if line["refused"] else "nothing to convert"
    if not line["executed"]:
        return "planned"
    return "exact but for refused layers" if line["refused"] else "exact"


def count_outcomes(
    lines: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]
) -> dict[Any, Counter[str]]:
    """Outcomes counted by ``key`` of a line, "tried" among them; keys in order of appearance."""
    result: dict[Any, Counter[str]] = {}
    for line in lines:
        what = outcome(line)
        counts = result.setdefault(key(line), Counter())
        counts[what] += 1
        counts["tried"] += what != "nothing to convert"
    return result
