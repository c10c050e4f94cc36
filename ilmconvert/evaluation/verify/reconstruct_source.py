"""The function that a converted checkpoint's own layers were built to compute, where they still tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilmconvert.errors import ModelError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.new_layers import adopt
from ilmconvert.surgery.replacement import copy_with
from ilmconvert.surgery.undo import affine_of


class ChannelAffine(nn.Module):
    """``scale * x + shift`` per channel: what a BatchNorm computes in evaluation mode. Inputs (N, C, ...)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.get_buffer("shift").view(shape), x, self.get_buffer("scale").view(shape))


def reconstruct_source(model: nn.Module) -> nn.Module:
    """A copy of a converted model in which every ILM Norm is the plain norm whose function it was built to compute.

    An ILM Norm that came from a BatchNorm ``a x + c`` by ``init="identity"`` has ``weight = restore_weight =
    restore_bias = a ref_std`` and ``bias = a ref_mean + c``, and decoders of zeros: a and c follow, exactly. One
    without a restoring path is the GroupNorm that it came from. A bound on the restoring path is left out.

    Raises:
        ModelError: a layer was trained or started otherwise, so that it doesn't tell what its source computed.

    >>> from ilmconvert import convert
    >>> source = nn.Sequential(nn.BatchNorm2d(16)).eval()
    >>> _ = source[0].running_mean.normal_()
    >>> x = torch.randn(2, 16, 4, 4)
    >>> torch.allclose(reconstruct_source(convert(source))(x), source(x), atol=1e-5)
    True
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm)}
    plain = {id(layer): _plain(name, layer) for name, layer in layers.items()}

    def make(layer: nn.Module, copied: nn.Module) -> nn.Module:
        parts = [part for part in (getattr(copied, "drop", None), getattr(copied, "act", None)) if part is not None]
        new = nn.Sequential(plain[id(layer)], *parts) if parts else plain[id(layer)]
        adopt(new, copied)
        return new

    return copy_with(model, layers, make).eval()


def _plain(name: str, layer: ILMNorm) -> nn.Module:
    with torch.no_grad():
        if layer.weight_decoder.any() or layer.bias_decoder.any():
            raise ModelError(f"{name or 'the root'} was trained: its decoders aren't zero")
        return _group_norm(layer) if layer.restore_weight is None else _affine(name, layer)


def _affine(name: str, layer: ILMNorm) -> nn.Module:
    weight, reference = layer.weight, (layer.bias, layer.ref_mean, layer.ref_std)
    if weight is None or any(t is None for t in reference):
        raise ModelError(f"{name or 'the root'} lacks the parameters of a converted BatchNorm")
    if not (torch.equal(weight, layer.restore_weight) and torch.equal(weight, layer.restore_bias)):  # type: ignore[arg-type]
        raise ModelError(f"{name or 'the root'} was trained or annealed: its restoring path isn't the identity")
    scale, shift = affine_of(layer)
    return ChannelAffine(scale.to(weight), shift.to(weight))


class _GroupNorm(nn.GroupNorm):
    """A GroupNorm that also takes groups of one element, as (N, C) inputs have."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(
            x.unsqueeze(-1) if x.ndim == 2 else x, self.num_groups, self.weight, self.bias, self.eps
        ).view_as(x)


def _group_norm(layer: ILMNorm) -> nn.Module:
    new = _GroupNorm(layer.num_groups, layer.num_channels, layer.eps, affine=layer.weight is not None)
    if layer.weight is not None:
        new.weight, new.bias = (nn.Parameter(t.detach().clone()) for t in (layer.weight, layer.bias))  # type: ignore[union-attr]
    return new
