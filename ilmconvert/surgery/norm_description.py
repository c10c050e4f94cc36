"""What a norm layer computes in evaluation mode, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class NormDescription:
    """What a norm layer computes in evaluation mode.

    Batch-level layers set ``running_mean`` and ``running_var``; instance-level ones set ``num_groups``.

    Attributes:
        num_channels: C.
        eps: added to the variance.
        weight, bias: gamma and beta, (C,), or None for 1 and 0.
        running_mean, running_var: (C,); None for an instance-level layer.
        num_groups: groups of an instance-level layer (C for InstanceNorm); None for a batch-level one.
        input_dims: dimensions of its input, of which one less is a single instance (InstanceNorm); None where any
            number of dimensions is a batch.
        drop, act: fused modules that the layer applies to its result, in this order.
    """

    num_channels: int
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_groups: int | None = None
    drop: nn.Module | None = None
    act: nn.Module | None = None
    input_dims: int | None = None


Describe = Callable[[Any], NormDescription]


def qualified_name(cls: type) -> str:
    """``module.Class``, as errors and plans name a type.

    >>> qualified_name(NormDescription)
    'ilmconvert.surgery.norm_description.NormDescription'
    """
    return f"{cls.__module__}.{cls.__qualname__}"
