"""How far a network is from another, and how good it is: outputs, layers, images, accuracy, robustness, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ilmconvert._constants import lazy_attributes

if TYPE_CHECKING:
    from ilmconvert.evaluation.compare import Fidelity, fidelity
    from ilmconvert.evaluation.latency import Cost
    from ilmconvert.evaluation.layer_metrics import LayerFidelity, common_layers, worst_layers
    from ilmconvert.evaluation.outputs import DETECTION_STAGES, OutputDifference, output_error
    from ilmconvert.evaluation.verify.reconstruct_source import reconstruct_source
    from ilmconvert.evaluation.worst_images import ImageFidelity

__all__ = [
    "DETECTION_STAGES",
    "Cost",
    "Fidelity",
    "ImageFidelity",
    "LayerFidelity",
    "OutputDifference",
    "common_layers",
    "fidelity",
    "output_error",
    "reconstruct_source",
    "worst_layers",
]

# Imported when first asked for: corruptions and plots need none of the others.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "compare": "Fidelity fidelity",
        "latency": "Cost",
        "layer_metrics": "LayerFidelity common_layers worst_layers",
        "outputs": "DETECTION_STAGES OutputDifference output_error",
        "verify.reconstruct_source": "reconstruct_source",
        "worst_images": "ImageFidelity",
    },
)
