"""Every error that ilmconvert raises on purpose: one line that says what is wrong and what to do."""

from __future__ import annotations


class ILMConvertError(Exception):
    """Base class: ``except ILMConvertError`` catches everything the library refuses."""


class ConversionError(ILMConvertError):
    """A model can't be converted as asked; the model is left as it was."""


class NoRunningStatistics(ConversionError, AttributeError):
    """Something asks an ILM Norm for the running statistics of a BatchNorm, to fuse it into a convolution.

    An AttributeError, too: ``hasattr`` says no, and ``getattr`` gives its default.
    """


class NotScriptable(ConversionError):
    """torch.jit.script was asked to compile an ILM Norm; its own errors would say nothing of use."""


class CheckpointError(ILMConvertError):
    """A file isn't a checkpoint that can be loaded here; nothing was loaded."""


class ModelError(ILMConvertError):
    """A model name, its weights or its constructor arguments can't be resolved."""


class WeightsError(ModelError):
    """A model's default weights can't be had.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: str, cure: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}; {cure}" if cure else reason)

    def __reduce__(self) -> tuple[type[WeightsError], tuple[str]]:
        return type(self), (str(self),)


class MisfitError(ModelError):
    """Weights that don't fit a model.

    Attributes:
        arguments: of the model's constructor that would make them fit, where these can be told.
    """

    arguments: dict[str, int]

    def __init__(self, message: str, arguments: dict[str, int] | None = None) -> None:
        self.arguments = arguments or {}
        super().__init__(message)


class CalibrationError(ILMConvertError):
    """A model can't be calibrated with this source or these batches; it is left as it was."""


class FineTuneError(ILMConvertError):
    """A run can't be started, continued or finished as asked."""


class EvaluationError(ILMConvertError):
    """A model can't be evaluated on these data as asked."""


class RecipeError(ILMConvertError):
    """A recipe that can't be: an unknown name or field, a value of another type or out of range."""


class DataError(ILMConvertError):
    """Images that can't be trained on as asked."""

    def __init__(self, message: object = "") -> None:
        # torch re-raises what a worker raised with the worker's whole traceback as the message.
        marker = f"{type(self).__name__}: "
        text = str(message)
        if text.startswith("Caught ") and marker in text:
            text = text.rpartition(marker)[2].splitlines()[0]
        super().__init__(text)


class ReportError(ILMConvertError):
    """A folder doesn't hold a run that can be reported."""


class HubError(ILMConvertError):
    """The hub can't be reached, or refuses."""


class ExportError(ILMConvertError):
    """The model can't be exported as asked; no file was written."""


class CollapseError(ILMConvertError):
    """A layer still adapts to its instance, so that no plain layer equals it; the model is left as it was."""


class NormsLeftBehind(UserWarning):
    """A conversion leaves norm layers that have running statistics or a formula that is unknown here."""


class PrecisionLost(UserWarning):
    """New layers are far less exact than their sources, since their type can't hold the values of a whole group."""


def one_line(text: object) -> str:
    """``text`` with every run of white space as one space: what another library says, as part of a message.

    >>> one_line("no such\\n  file")
    'no such file'
    """
    return " ".join(str(text).split())
