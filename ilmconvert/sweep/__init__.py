"""Every model of the zoos through the whole promise: convert, compare, save, load, train a step."""

from ilmconvert.sweep.comparison import TOLERANCE
from ilmconvert.sweep.driver import choose, read_lines, run_sweep, survey
from ilmconvert.sweep.model import MAX_PARAMETERS, run_model
from ilmconvert.sweep.randomize import randomize_norms, wake_parameters
from ilmconvert.sweep.summary import OUTCOMES, outcome, tally

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
