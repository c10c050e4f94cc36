"""The error of this package; recipes and data have their own."""

from __future__ import annotations

from ilmconvert.errors import ILMConvertError


class FineTuneError(ILMConvertError):
    """A run can't be started, continued or finished as asked."""
