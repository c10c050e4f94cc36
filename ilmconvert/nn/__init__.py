"""The layer: Instance-Level Meta Normalization, as a module and as a function. Knows nothing about models."""

from ilmconvert.nn.functional import ilm_norm
from ilmconvert.nn.layer import ILMNorm, ILMNormAct

__all__ = ["ILMNorm", "ILMNormAct", "ilm_norm"]
