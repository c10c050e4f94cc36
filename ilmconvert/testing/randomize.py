"""Telling values for a fresh network: with those it is built with, a wrong conversion could pass for a right one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Parameters below this are what a fresh network keeps small on purpose (layer scales, last layers of branches).
_ASLEEP = 1e-2


def randomize_norms(model: nn.Module, seed: int = 0, *, scale: float = 1.0) -> nn.Module:
    """Random affine parameters and running statistics for every norm of torch, timm, torchvision.

    So for every other module that holds a running mean and a running variance, as the frozen BatchNorms of other
    libraries do.

    A freshly built network (gamma 1, beta 0, mean 0, variance 1, often gamma 0 in the last norm of a residual
    branch) would let a wrong conversion pass. Variances lie in [0.3, 3], means and biases in [-1, 1], |gamma|
    in [0.3, 2] with random signs, gammas and biases times ``scale``; ``num_batches_tracked`` becomes 1000. The same
    seed gives the same model; returns ``model``, changed in place.

    >>> norm = randomize_norms(nn.BatchNorm2d(8))
    >>> bool((norm.running_var >= 0.3).all() and (norm.running_var <= 3).all())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = _norm_types()
    with torch.no_grad():
        for module in model.modules():
            if not _is_norm(module, kinds):
                continue
            tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            if (weight := tensors.get("weight")) is not None:
                gamma = _uniform(weight, 0.3, 2.0, generator) * _uniform(weight, -1.0, 1.0, generator).sign()
                weight.copy_(scale * gamma)
            if (variance := tensors.get("running_var")) is not None:
                variance.copy_(_uniform(variance, 0.3, 3.0, generator))
            if (bias := tensors.get("bias")) is not None:
                bias.copy_(scale * _uniform(bias, -1.0, 1.0, generator))
            if (mean := tensors.get("running_mean")) is not None:
                mean.copy_(_uniform(mean, -1.0, 1.0, generator))
            if (count := tensors.get("num_batches_tracked")) is not None:
                count.fill_(1000)
    return model


def wake_parameters(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give values to all other parameters that are near zero, biases excepted; in place.

    A layer scale of 1e-6 or a last layer of zeros would hide whatever its branch computes. Vectors and scalars
    become uniform in [0.3, 1], the rest normal with the variance 1 / fan-in.

    >>> layer = nn.Linear(4, 3)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> bool(wake_parameters(layer).weight.any())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = _norm_types()
    norms = {id(p) for m in model.modules() if _is_norm(m, kinds) for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if id(p) in norms or name.endswith("bias") or p.numel() == 0 or p.abs().max() >= _ASLEEP:
                continue
            if p.numel() == max(p.shape, default=1):
                p.copy_(_uniform(p, 0.3, 1.0, generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator, device="cpu") / p[0].numel() ** 0.5)
    return model


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu")


def _is_norm(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    statistics = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return isinstance(module, kinds) or all(isinstance(t, Tensor) and t.is_floating_point() for t in statistics)


def _norm_types() -> tuple[type[nn.Module], ...]:
    from timm.layers import FrozenBatchNormAct2d, RmsNorm
    from torchvision.ops import FrozenBatchNorm2d

    # The base of every BatchNorm and InstanceNorm, also of the synchronised and fused ones.
    shared = nn.modules.batchnorm._NormBase
    return (shared, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RmsNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
