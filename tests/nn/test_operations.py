"""How many operations a layer issues in eager mode: at batch 1 they are what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ilmconvert import convert
from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.forward import eager_forward
from ilmconvert.nn.kernels import dispatch
from tests.helpers import randomize_norms

# On tensors of (N, C), (N, G) and (N, K); a few more make the layer's constants.
MOST = 20
_VIEWS = ("view", "unsqueeze", "squeeze", "t", "transpose", "expand", "select", "split", "unbind", "detach", "alias")


class Count(TorchDispatchMode):
    """The operations that compute on tensors of instances."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        if name not in _VIEWS and any(t.dim() and t.shape[0] % self.samples == 0 for t in tensors):
            self.names.append(name)
        return result


@pytest.mark.parametrize("to", ["ilm_gn", "ilm_ln", "ilm_in"])
def test_few_operations_between_the_passes(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convert(randomize_norms(nn.BatchNorm2d(64)), to)
    x = torch.randn(7, 64, 5, 5)
    t = Tensors(*(getattr(layer, name) for name in Tensors._fields))
    s = Settings(layer.num_groups, layer.encoder.shape[1], layer.eps, 0, None)
    found = dispatch.moments(x, s.finest)
    monkeypatch.setattr(dispatch, "moments", lambda *_: found)
    monkeypatch.setattr(dispatch, "scale_shift", lambda x, *_: x)
    with torch.no_grad(), Count(7) as count:
        eager_forward(x, t, s)
    assert 10 < len(count.names) <= MOST, count.names
