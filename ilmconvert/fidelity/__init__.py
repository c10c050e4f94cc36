"""How far a converted model is from its source: outputs, layers, pictures, cost; and whether its promise is kept."""

from __future__ import annotations

from ilmconvert.fidelity.cost import Cost
from ilmconvert.fidelity.implied import implied_source
from ilmconvert.fidelity.layers import LayerFidelity, common_layers, worst_layers
from ilmconvert.fidelity.measure import Fidelity, fidelity
from ilmconvert.fidelity.outputs import DETECTION_STAGES, OutputError, output_error
from ilmconvert.fidelity.pictures import PictureFidelity

__all__ = [
    "DETECTION_STAGES",
    "Cost",
    "Fidelity",
    "LayerFidelity",
    "OutputError",
    "PictureFidelity",
    "common_layers",
    "fidelity",
    "implied_source",
    "output_error",
    "worst_layers",
]
