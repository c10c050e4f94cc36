"""Exact conversion of pretrained BatchNorm and GroupNorm networks to Instance-Level Meta Normalization."""

from __future__ import annotations

import logging as _logging
from typing import TYPE_CHECKING

from ilmconvert._constants import __version__ as __version__
from ilmconvert._constants import lazy_attributes
from ilmconvert.errors import CheckpointError, ConversionError, ILMConvertError, ModelError
from ilmconvert.export.import_hook import register as _register_in_libraries

if TYPE_CHECKING:
    from ilmconvert.calibration.bound import calibrate_bound
    from ilmconvert.checkpoint.delta import apply_delta, save_delta
    from ilmconvert.checkpoint.save_load import load, save
    from ilmconvert.export.hub import push_to_hub, save_pretrained
    from ilmconvert.models.load_weights import load_weights
    from ilmconvert.models.undo import undo
    from ilmconvert.nn import ILMNorm
    from ilmconvert.surgery import (
        ConversionInfo,
        NormDescription,
        Plan,
        PlanEntry,
        convert,
        info,
        plan,
        register_source,
        standardize_input,
    )

__all__ = [
    "CheckpointError",
    "ConversionError",
    "ConversionInfo",
    "ILMConvertError",
    "ILMNorm",
    "ModelError",
    "NormDescription",
    "Plan",
    "PlanEntry",
    "apply_delta",
    "calibrate_bound",
    "convert",
    "info",
    "load",
    "load_weights",
    "plan",
    "push_to_hub",
    "register_source",
    "save",
    "save_delta",
    "save_pretrained",
    "standardize_input",
    "undo",
]

# Imported when first asked for, so that the command line's help doesn't wait for torch.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "calibration.bound": "calibrate_bound",
        "checkpoint.delta": "apply_delta save_delta",
        "checkpoint.save_load": "load save",
        "export.hub": "push_to_hub save_pretrained",
        "models.load_weights": "load_weights",
        "models.undo": "undo",
        "nn": "ILMNorm",
        "surgery": "ConversionInfo NormDescription Plan PlanEntry convert info plan register_source standardize_input",
    },
)

_register_in_libraries()
_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent unless the program wants to hear it
