"""The arguments of the layer's function, as the formula and the kernels take them."""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.restore_range import Range, RestoreRange


class Tensors(NamedTuple):
    """The tensors of a layer; shapes in :func:`ilmconvert.nn.ilm_norm`."""

    weight: Tensor | None
    bias: Tensor | None
    encoder: Tensor | None
    weight_decoder: Tensor | None
    bias_decoder: Tensor | None
    restore_weight: Tensor | None
    restore_bias: Tensor | None
    ref_mean: Tensor | None
    ref_std: Tensor | None

    def to(self, dtype: torch.dtype) -> Tensors:
        """All of them in ``dtype``."""
        if all(t is None or t.dtype == dtype for t in self):
            return self
        return Tensors(*(None if t is None else t.to(dtype) for t in self))


class Settings(NamedTuple):
    """What of a layer isn't a tensor."""

    num_groups: int
    num_key_groups: int
    eps: float
    correction: int
    restore_bound: float | None
    restore_range: RestoreRange | Range | None = None

    @property
    def finest(self) -> int:
        """Number of groups of the finest partition, from whose moments those of both others follow."""
        return lcm(self.num_groups, self.num_key_groups)
