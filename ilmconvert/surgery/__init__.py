"""Model surgery: which layers are norms, what becomes of them, and the replacement itself."""

from ilmconvert.surgery.apply import convert
from ilmconvert.surgery.conversion_info import ConversionInfo, info
from ilmconvert.surgery.left_behind import left_behind
from ilmconvert.surgery.plan import Plan, plan
from ilmconvert.surgery.plan_entry import PlanEntry
from ilmconvert.surgery.sources import NormDescription, register_source
from ilmconvert.surgery.standardize_input import standardize_input

__all__ = [
    "ConversionInfo",
    "NormDescription",
    "Plan",
    "PlanEntry",
    "convert",
    "info",
    "left_behind",
    "plan",
    "register_source",
    "standardize_input",
]
