"""Calibration: layers without a restoring path brought nearer to their source by a few unlabelled batches."""

from ilmconvert.calibration.calibrate import Calibration, LayerFit, calibrate
from ilmconvert.calibration.errors import CalibrationError
from ilmconvert.calibration.references import update_references

__all__ = ["Calibration", "CalibrationError", "LayerFit", "calibrate", "update_references"]
