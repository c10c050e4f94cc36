"""The way back from a conversion."""

from __future__ import annotations

import warnings

from torch import nn

from ilmconvert.models.spec import ModelSpec
from ilmconvert.surgery.conversion_info import noted
from ilmconvert.surgery.undo import undo_with


def undo(model: nn.Module, source: nn.Module | None = None, *, partial: bool = False) -> nn.Module:
    """A copy of a converted model with plain norms again, where its layers still compute what a plain norm can.

    That is so right after a conversion with ``init="identity"``, and after a training in which the norms were frozen,
    or only their biases trained: convolutions and the classifier may have changed. In evaluation mode the result
    computes what ``model`` does, up to rounding, and its norms can be folded into convolutions.

    The running statistics are those that the layers hold: of a group, not of each channel, with gamma and beta that
    belong to them. Keep them frozen, or the function changes: the statistics of a batch are others.

    Args:
        model: converted; isn't changed.
        source: a network like the one that was converted, whose values don't matter: the norms get its norms' classes.
            None: a new one of the same name, for models of timm and torchvision; of others the norms become
            ``nn.BatchNorm2d``, ``nn.GroupNorm`` and ``nn.InstanceNorm``, an activation behind one in a ``Sequential``.
        partial: keep layers that equal no plain norm, with a warning, instead of refusing.

    Raises:
        ConversionError: no ILM Norm, a layer that equals no plain norm (it is named, with the reason), or a source
            that doesn't fit.

    >>> from ilmconvert import convert
    >>> from ilmconvert.testing import randomize_norms
    >>> import torch
    >>> source = randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16))).eval()
    >>> back = undo(convert(source))
    >>> x = torch.randn(2, 3, 4, 4)
    >>> type(back[1]).__name__, torch.allclose(back(x), source(x), atol=1e-5)
    ('BatchNorm2d', True)
    """
    spec = noted(model).spec
    if source is None and isinstance(spec, ModelSpec):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = spec.build(initialize=False)
    return undo_with(model, source, partial=partial)
