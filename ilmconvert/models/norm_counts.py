"""Which models of timm and torchvision hold norm layers that can be converted."""

from __future__ import annotations

import torch
from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.models.create import ModelSpec, parse_name
from ilmconvert.models.names import COUNTS_FILE, stored_counts
from ilmconvert.surgery import plan

__all__ = ["COUNTS_FILE", "count_norms", "skeleton", "stored_counts"]


def skeleton(spec: ModelSpec) -> nn.Module:
    """The model without values, which costs neither time nor memory where the model can do without them.

    For looking at its structure only: parameters and buffers may be on the meta device.
    """
    try:
        with torch.device("meta"):
            return spec.build(initialize=False)
    except ModelError:  # some constructors compute with tensors
        return spec.build(initialize=False)


def count_norms(name: str) -> int:
    """How many layers of a model would be converted; builds its skeleton.

    >>> count_norms("test_resnet"), count_norms("test_vit")
    (15, 0)
    """
    return len(plan(skeleton(parse_name(name))).converted)
