"""Exact conversion of pretrained BatchNorm and GroupNorm networks to Instance-Level Meta Normalization."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ilmconvert._constants import __version__ as __version__
from ilmconvert.errors import CheckpointError, ConversionError, ILMConvertError, ModelError
from ilmconvert.export.hub.timm_import_hook import register as _register_in_timm

if TYPE_CHECKING:
    from ilmconvert.calibration.bound import calibrate_bound
    from ilmconvert.checkpoint.delta import apply_delta, save_delta
    from ilmconvert.checkpoint.save_load import load, save
    from ilmconvert.export.hub import push_to_hub, save_pretrained
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery import NormDescription, Plan, PlanEntry, convert, plan, register_source

__all__ = [
    "CheckpointError",
    "ConversionError",
    "ILMConvertError",
    "ILMNorm",
    "ModelError",
    "NormDescription",
    "Plan",
    "PlanEntry",
    "apply_delta",
    "calibrate_bound",
    "convert",
    "load",
    "plan",
    "push_to_hub",
    "register_source",
    "save",
    "save_delta",
    "save_pretrained",
]

# Imported when first asked for, so that the command line's help doesn't wait for torch.
_HOMES = {
    **dict.fromkeys(("load", "save"), "ilmconvert.checkpoint.save_load"),
    **dict.fromkeys(("apply_delta", "save_delta"), "ilmconvert.checkpoint.delta"),
    **dict.fromkeys(("push_to_hub", "save_pretrained"), "ilmconvert.export.hub"),
    "ILMNorm": "ilmconvert.nn",
    "calibrate_bound": "ilmconvert.calibration.bound",
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


_register_in_timm()
