"""A mean over seeds, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ilmconvert.errors import ILMConvertError


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; ``error`` is its standard error and ``half`` half of the 95 % interval; None of one seed."""

    mean: float
    error: float | None
    half: float | None
    count: int

    @property
    def in_errors(self) -> float | None:
        """The mean in standard errors; None where these are 0, but for rounding.

        >>> estimate([0.3 - 0.1, 0.5 - 0.3]).in_errors is None
        True
        """
        return None if self.error is None or self.error <= 1e-9 * abs(self.mean) else self.mean / self.error

    @property
    def told_from_zero(self) -> bool:
        """Whether the interval leaves out 0.

        >>> estimate([0.1, 0.2, 0.3]).told_from_zero, estimate([0.2, 0.2, 0.3]).told_from_zero
        (False, True)
        """
        return self.half is not None and abs(self.mean) > self.half

    def text(self, sign: str = "") -> str:
        """
        >>> estimate([0.1, 0.2, 0.3]).text("+")
        '+0.200 ± 0.248'
        """
        return f"{self.mean:{sign}.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")

    def as_difference(self) -> str:
        """
        >>> estimate([0.1, 0.2, 0.3]).as_difference()
        '+0.200 ± 0.248 (+3.5)'
        """
        return self.text("+") + ("" if self.in_errors is None else f" ({self.in_errors:+.1f})")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard error and half of Student's 95 % interval.

    Raises:
        ILMConvertError: scipy isn't installed.
    """
    count = len(values)
    if count < 2:
        return Estimate(statistics.fmean(values), None, None, count)
    try:
        from scipy.stats import t  # type: ignore[import-untyped]
    except ImportError as missing:
        raise ILMConvertError("intervals over seeds need scipy: pip install 'ilmconvert[finetune]'") from missing
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), error, error * float(t.ppf(0.975, count - 1)), count)
