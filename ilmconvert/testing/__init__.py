"""Checks of a conversion, for one model or for every model of timm and torchvision."""

from __future__ import annotations

from ilmconvert.testing.check_conversion import TOLERANCE
from ilmconvert.testing.randomize import randomize_norms, wake_parameters
from ilmconvert.testing.summary import OUTCOMES, outcome, tally
from ilmconvert.testing.sweep import choose, read_lines, run_sweep, survey
from ilmconvert.testing.sweep_model import MAX_PARAMETERS, run_model

__all__ = [
    "MAX_PARAMETERS",
    "OUTCOMES",
    "TOLERANCE",
    "choose",
    "outcome",
    "randomize_norms",
    "read_lines",
    "run_model",
    "run_sweep",
    "survey",
    "tally",
    "wake_parameters",
]
