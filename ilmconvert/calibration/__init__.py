"""Calibration: layers without a restoring path brought nearer to their source by a few unlabelled batches."""

from ilmconvert.calibration.calibrate import Calibration, LayerFit, calibrate
from ilmconvert.calibration.references import update_references
from ilmconvert.errors import CalibrationError

__all__ = ["Calibration", "CalibrationError", "LayerFit", "calibrate", "update_references"]
