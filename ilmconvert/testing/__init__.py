"""Checks of a conversion, for one model or for every model of timm and torchvision."""

from __future__ import annotations

from ilmconvert.testing.randomize import randomize_norms, wake_parameters
from ilmconvert.testing.summary import OUTCOMES, count_outcomes, outcome
from ilmconvert.testing.sweep import choose, read_lines, run_sweep, survey
from ilmconvert.testing.sweep_model import MAX_PARAMETERS, run_model

__all__ = [
    "MAX_PARAMETERS",
    "OUTCOMES",
    "choose",
    "count_outcomes",
    "outcome",
    "randomize_norms",
    "read_lines",
    "run_model",
    "run_sweep",
    "survey",
    "wake_parameters",
]
