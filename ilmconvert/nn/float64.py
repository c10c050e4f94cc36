"""Float64 for numbers that are reckoned with once."""

from __future__ import annotations

import torch
from torch import Tensor


def float64(t: Tensor) -> Tensor:
    """``t`` in float64, without its graph and on the CPU: some accelerators, Apple's for one, have no float64.

    What has no values stays on the meta device.

    >>> float64(torch.ones(2, requires_grad=True))
    tensor([1., 1.], dtype=torch.float64)
    """
    t = t.detach()
    return (t if t.is_meta else t.cpu()).to(torch.float64)
