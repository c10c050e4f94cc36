"""Every error that ilmconvert raises on purpose: one line that says what is wrong and what to do."""


class ILMConvertError(Exception):
    """Base class: ``except ILMConvertError`` catches everything the library refuses."""


class ConversionError(ILMConvertError):
    """A model can't be converted as asked; the model is left as it was."""


class NoRunningStatistics(ConversionError, AttributeError):
    """Something asks an ILM Norm for the running statistics of a BatchNorm, to fuse it into a convolution.

    An AttributeError, too: ``hasattr`` says no, and ``getattr`` gives its default.
    """


class CheckpointError(ILMConvertError):
    """A file isn't a checkpoint that can be loaded here; nothing was loaded."""


class ModelError(ILMConvertError):
    """A model name, its weights or its constructor arguments can't be resolved."""
