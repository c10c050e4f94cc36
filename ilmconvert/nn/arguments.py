"""The arguments of the layer's function, as the formula and the kernels take them."""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from ilmconvert.nn.restore_range import RestoreRange


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


class RestoringConstants(NamedTuple):
    """A layer with an unbounded restoring path as ``x (gain + (base_weight + gate) / sigma) + base_bias + offset + mu
    (bias_gain - scale)``, where ``scale`` is the factor of ``x``, and gate and offset are the meta-network's.

    Right after a conversion ``base_weight`` is 0 and both gains are the same: the statistics cancel exactly.

    Attributes:
        gain, bias_gain: (G, C / G), of the source's affine function.
        base_weight, base_bias: (C,).
    """

    gain: Tensor
    bias_gain: Tensor
    base_weight: Tensor
    base_bias: Tensor


def restoring_constants(t: Tensors, s: Settings) -> RestoringConstants:
    """Of tensors of one type, with a restoring path."""
    assert t.restore_weight is not None
    assert t.restore_bias is not None
    assert t.ref_mean is not None
    assert t.ref_std is not None
    std = t.ref_std.unsqueeze(1)
    gain, bias_gain = t.restore_weight.view(s.num_groups, -1) / std, t.restore_bias.view(s.num_groups, -1) / std
    # A product and a difference, as the conversion reckons with: one rounding each.
    taken = (bias_gain * t.ref_mean.unsqueeze(1)).flatten()
    base_weight = 1 - t.restore_weight if t.weight is None else t.weight - t.restore_weight
    return RestoringConstants(gain, bias_gain, base_weight, -taken if t.bias is None else t.bias - taken)


class Settings(NamedTuple):
    """What of a layer isn't a tensor."""

    num_groups: int
    num_key_groups: int
    eps: float
    correction: int
    restore_bound: float | None
    restore_range: RestoreRange | None = None

    @property
    def finest(self) -> int:
        """Number of groups of the finest partition, from whose moments those of both others follow."""
        return lcm(self.num_groups, self.num_key_groups)
