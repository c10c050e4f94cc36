"""For inference only: replace layers whose meta-network or rescaling is constant by the smaller layer they equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilmconvert.nn import ILMNorm, ILMNormAct, ilm_norm
from ilmconvert.nn.float64 import float64
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.replacement import copy_with

_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_TENSORS = ("weight", "bias", "restore_weight", "restore_bias", "ref_mean", "ref_std")
_SETTINGS = ("num_groups", "eps", "correction", "restore_bound", "restore_range", "input_dims")


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, with every ILM Norm as small as its values allow. Same function.

    - A decoder of zeros contributes nothing: the meta-network goes.
    - Without a restoring path what is left is a ``nn.GroupNorm``, or the ``nn.InstanceNorm`` that there was.
    - A restoring path that gives every instance exactly its own statistics back, as right after an identity
      conversion, leaves ``a x + c`` per channel, which runtimes fuse into a neighbouring convolution.

    >>> isinstance(fold(nn.Sequential(ILMNorm(32, 8)))[0], nn.GroupNorm)
    True
    """
    smaller = {id(m): _fold_layer(m) for m in model.modules() if isinstance(m, ILMNorm)}
    layers = {name: m for name, m in model.named_modules() if smaller.get(id(m)) is not None}

    def make(layer: nn.Module, copied: nn.Module) -> nn.Module:
        new = smaller[id(layer)]
        assert new is not None
        if isinstance(copied, ILMNormAct):
            new = nn.Sequential(new, copied.drop, copied.act)
        adopt(new, copied)
        return new

    return copy_with(model, layers, make).eval()


@torch.no_grad()
def _fold_layer(layer: ILMNorm) -> nn.Module | None:
    if layer.weight_decoder.any() or layer.bias_decoder.any():
        return None
    if layer.restore_weight is None:
        return _plain_norm(layer) or WithoutMeta(layer)
    same = layer.weight is not None and torch.equal(layer.weight, layer.restore_weight)
    unbounded = layer.restore_bound is None and layer.restore_range is None
    if same and unbounded and _equal(layer.restore_bias, layer.restore_weight):
        return _Affine(layer)
    return WithoutMeta(layer)


def _equal(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and torch.equal(a, b)


def _plain_norm(layer: ILMNorm) -> nn.Module | None:
    norm: nn.Module
    if layer.correction != 0:
        return None
    if layer.input_dims is None:
        norm = nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, affine=layer.affine)
    elif layer.num_groups == layer.num_channels:
        norm = _INSTANCE_NORMS[layer.input_dims](layer.num_channels, layer.eps, affine=layer.affine)
    else:
        return None
    if layer.weight is not None and layer.bias is not None:
        norm.weight = nn.Parameter(layer.weight.clone())
        norm.bias = nn.Parameter(layer.bias.clone())
    return norm


class _Affine(nn.Module):
    """``x * scale + shift`` per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: ILMNorm) -> None:
        super().__init__()
        self.input_dims = layer.input_dims
        assert layer.restore_weight is not None
        assert layer.ref_mean is not None
        assert layer.ref_std is not None
        size = layer.num_channels // layer.num_groups
        mean, std = (float64(t).repeat_interleave(size) for t in (layer.ref_mean, layer.ref_std))
        scale = float64(layer.restore_weight) / std
        bias = torch.zeros_like(scale) if layer.bias is None else float64(layer.bias)
        self.register_buffer("scale", scale.to(layer.restore_weight))
        self.register_buffer("shift", (bias - scale * mean).to(layer.restore_weight))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * ((self.input_dims or x.dim()) - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)


class WithoutMeta(nn.Module):
    """ILM Norm without its meta-network."""

    def __init__(self, layer: ILMNorm) -> None:
        super().__init__()
        self.num_channels, self.num_groups = layer.num_channels, layer.num_groups
        self.eps, self.correction, self.input_dims = layer.eps, layer.correction, layer.input_dims
        self.restore_bound, self.restore_range = layer.restore_bound, layer.restore_range
        for name in _TENSORS:
            t = getattr(layer, name)
            self.register_buffer(name, None if t is None else t.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return ilm_norm(x, **tensors, **settings)
