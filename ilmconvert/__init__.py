"""Exact conversion of pretrained BatchNorm and GroupNorm networks to Instance-Level Meta Normalization."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ilmconvert.errors import CheckpointError, ConversionError, ILMConvertError, ModelError

if TYPE_CHECKING:
    from ilmconvert.checkpoint import load, save
    from ilmconvert.nn import ILMNorm
    from ilmconvert.robustness.bound import calibrate_bound
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
    "calibrate_bound",
    "convert",
    "load",
    "plan",
    "register_source",
    "save",
]

# Imported when first asked for, so that the command line's help doesn't wait for torch.
_HOMES = {
    **dict.fromkeys(("load", "save"), "ilmconvert.checkpoint"),
    "ILMNorm": "ilmconvert.nn",
    "calibrate_bound": "ilmconvert.robustness.bound",
    **dict.fromkeys(
        ("NormDescription", "Plan", "PlanEntry", "convert", "plan", "register_source"), "ilmconvert.surgery"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
