"""How far a network is from another, and how good it is: outputs, layers, images, accuracy, robustness, cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ilmconvert.evaluation.compare import Fidelity, fidelity
    from ilmconvert.evaluation.latency import Cost
    from ilmconvert.evaluation.layer_metrics import LayerFidelity, common_layers, worst_layers
    from ilmconvert.evaluation.outputs import DETECTION_STAGES, OutputError, output_error
    from ilmconvert.evaluation.verify.reconstruct_source import implied_source
    from ilmconvert.evaluation.worst_images import ImageFidelity

__all__ = [
    "DETECTION_STAGES",
    "Cost",
    "Fidelity",
    "ImageFidelity",
    "LayerFidelity",
    "OutputError",
    "common_layers",
    "fidelity",
    "implied_source",
    "output_error",
    "worst_layers",
]

# Imported when first asked for: corruptions and plots need none of the others.
_HOMES = {
    **dict.fromkeys(("Fidelity", "fidelity"), "compare"),
    "Cost": "latency",
    **dict.fromkeys(("LayerFidelity", "common_layers", "worst_layers"), "layer_metrics"),
    **dict.fromkeys(("DETECTION_STAGES", "OutputError", "output_error"), "outputs"),
    "implied_source": "verify.reconstruct_source",
    "ImageFidelity": "worst_images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
