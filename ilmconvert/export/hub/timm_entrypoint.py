"""The architecture under which timm finds published conversions; imported when timm is, see ``import_hook.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.models import register_model

if TYPE_CHECKING:
    from torch import nn


def ilmconvert_model(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A converted network from what its ``config.json`` says; see :func:`ilmconvert.export.hub.timm_builder.build`."""
    from ilmconvert.export.hub.timm_builder import build

    return build(pretrained=pretrained, **kwargs)


register_model(ilmconvert_model)
