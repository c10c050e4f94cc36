"""Exact conversion of pretrained BatchNorm and GroupNorm networks to Instance-Level Meta Normalization."""

from ilmconvert.checkpoint import load, save
from ilmconvert.errors import CheckpointError, ConversionError, ILMConvertError, ModelError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery import NormDescription, Plan, PlanEntry, convert, plan, register_source

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConversionError",
    "ILMConvertError",
    "ILMNorm",
    "ModelError",
    "NormDescription",
    "Plan",
    "PlanEntry",
    "convert",
    "load",
    "plan",
    "register_source",
    "save",
]
