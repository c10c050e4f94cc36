"""What calibration refuses."""

from __future__ import annotations

from ilmconvert.errors import ILMConvertError


class CalibrationError(ILMConvertError):
    """A model can't be calibrated with this source or these batches; it is left as it was."""
