"""Networks of one architecture as one: their parameters stacked, and their layers written for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.func import stack_module_state
from torch.nn import functional as F

from ilmconvert.nn import ILMNorm
from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.composed import composed
from ilmconvert.nn.layer import ILMNormAct
from ilmconvert.nn.restore_range import RestoreRange

_LIMITS = "limits"


class Stack:
    """The tensors of several networks.

    Attributes:
        flat: what trains, a row for each network.
        constants: the rest by name, networks first; buffers, and what is frozen.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        parameters, buffers = stack_module_state(list(networks))
        self.count = len(networks)
        self._shapes = {name: t.shape[1:] for name, t in parameters.items() if t.requires_grad}
        trained = [parameters[name].detach().flatten(1) for name in self._shapes]
        self._sizes = [t.shape[1] for t in trained]
        self.flat = torch.cat(trained, 1)
        frozen = {name: t.detach() for name, t in parameters.items() if name not in self._shapes}
        self.constants = {**frozen, **{name: t.clone() for name, t in buffers.items()}}
        self.constants |= {
            f"{name}.{_LIMITS}": torch.stack([_limits(network.get_submodule(name)) for network in networks])
            for name in _ranged(networks[0])
        }

    @property
    def names(self) -> list[str]:
        """Of what trains, in the order of the columns of ``flat``."""
        return list(self._shapes)

    def columns(self, values: Mapping[str, float]) -> Tensor:
        """A row like those of ``flat`` from a number for each parameter."""
        parts = [torch.full((size,), values[name]) for name, size in zip(self._shapes, self._sizes, strict=True)]
        return torch.cat(parts).to(self.flat.device)

    def parameters(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Views of ``flat``, by default its own, networks first."""
        parts = zip(self._shapes.items(), (self.flat if flat is None else flat).split(self._sizes, 1), strict=True)
        return {name: part.view(self.count, *shape) for (name, shape), part in parts}

    @torch.no_grad()
    def copy_to(self, network: nn.Module, row: int) -> None:
        """Give ``network`` the tensors of one."""
        found = {**self.parameters(), **self.constants}
        state = network.state_dict(keep_vars=True)
        for name, tensor in state.items():
            tensor.copy_(found[name][row])


def stackable(network: nn.Module, *, compiled: bool = False) -> nn.Module:
    """``network`` made to be called with stacked tensors, in place; it computes the same.

    The ranges of ILM Norms become buffers, so that each network can have its own, and convolutions of one position
    become products of matrices: stacked, they are many small groups, which libraries are slow for.

    Args:
        compiled: whether a compiler will fuse what is written out. Then all convolutions are sums over windows, the
            gradient of whose weights is a quarter of the step otherwise, and frozen BatchNorms are written out, which
            makes the compiler's work a third shorter.
    """
    for name in _ranged(network):
        layer = network.get_submodule(name)
        layer.register_buffer(_LIMITS, _limits(layer))
        assert isinstance(layer, ILMNorm)
        layer.forward = partial(_within_limits, layer)  # type: ignore[method-assign]
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
            assert layer.padding in ((0, 0), "valid", "same")
            layer.forward = partial(_product, layer)  # type: ignore[method-assign]
        elif compiled and isinstance(layer, nn.Conv2d):
            layer.forward = partial(_over_windows, layer)  # type: ignore[method-assign]
        elif compiled and isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.forward = partial(_batch_norm, layer)  # type: ignore[method-assign]
    return network


def _product(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return _with_bias(layer, torch.einsum("oc,nchw->nohw", layer.weight.flatten(1), x))


def _with_bias(layer: nn.Conv2d, y: Tensor) -> Tensor:
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


def _over_windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert type(layer) in (nn.Conv2d, Conv2dSame)
    assert layer.dilation == (1, 1)
    assert layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    (h, w), (down, right) = layer.kernel_size, layer.stride
    if isinstance(layer, Conv2dSame):
        x = pad_same(x, layer.kernel_size, layer.stride)
    else:
        above, left = layer.padding  # type: ignore[misc]
        x = F.pad(x, (left, left, above, above))  # type: ignore[arg-type]
    windows = x.unfold(-2, h, down).unfold(-2, w, right)  # (N, C, H, W, h, w)
    if layer.groups == 1:
        y = torch.einsum("oiyx,nihwyx->nohw", layer.weight, windows)
    else:
        y = (windows * layer.weight.squeeze(1)[:, None, None]).sum((-2, -1))
    return _with_bias(layer, y)


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if layer.training:
        return type(layer).forward(layer, x)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    mean, scale, bias = (t[:, None, None] for t in (layer.running_mean, scale, layer.bias))
    y = (x - mean) * scale + bias
    return layer.act(layer.drop(y)) if isinstance(layer, BatchNormAct2d) else y


def _ranged(network: nn.Module) -> list[str]:
    norms = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, ILMNorm))
    return [name for name, layer in norms if layer.restore_range is not None]


def _limits(layer: nn.Module) -> Tensor:
    assert isinstance(layer, ILMNorm)
    assert layer.restore_range is not None
    return torch.tensor(layer.restore_range, device=layer.encoder.device)


def _within_limits(layer: ILMNorm, x: Tensor) -> Tensor:
    """:meth:`ILMNorm.forward` with limits that are a tensor."""
    limits: Tensor = getattr(layer, _LIMITS)
    settings = Settings(
        layer.num_groups,
        layer.encoder.shape[1],
        layer.eps,
        layer.correction,
        layer.restore_bound,
        RestoreRange(*limits.unbind()),  # type: ignore[arg-type]
    )
    y = composed(x, Tensors(*(getattr(layer, name) for name in Tensors._fields)), settings)
    result: Tensor = layer.act(layer.drop(y)) if isinstance(layer, ILMNormAct) else y
    return result
