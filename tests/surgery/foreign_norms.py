"""Norms as other libraries write them: the same formulas under other names, types and constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourBuffers(nn.Module):
    """What all frozen BatchNorms hold."""

    def __init__(self, n: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(n))


class DetrFrozenBatchNorm(FourBuffers):
    """Without an attribute for eps, as DETR and five classes of transformers."""

    def forward(self, x: Tensor) -> Tensor:
        w, b, v, m = (getattr(self, k).reshape(1, -1, 1, 1) for k in ("weight", "bias", "running_var", "running_mean"))
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


class OldFrozenBatchNorm(FourBuffers):
    """Without eps at all, as the first ones."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


class Detectron2FrozenBatchNorm(FourBuffers):
    """Its own eps, and F.batch_norm where nothing needs a gradient."""

    def __init__(self, n: int, eps: float = 3e-5) -> None:
        super().__init__(n)
        self.num_features, self.eps = n, eps

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + bias.reshape(1, -1, 1, 1).to(x.dtype)
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *statistics, training=False, eps=self.eps)


class MmdetFrozenBatchNorm(nn.BatchNorm2d):
    """A subclass that never trains."""

    def train(self, mode: bool = True) -> MmdetFrozenBatchNorm:
        super().train(False)
        return self


class InplaceABN(nn.Module):
    """A BatchNorm with a leaky ReLU that is no module, and parameters of other names."""

    def __init__(self, n: int, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = slope
        self.scale, self.shift = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("moving_mean", torch.zeros(n))
        self.register_buffer("moving_var", torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.moving_mean, self.moving_var, self.scale, self.shift, self.training, 0.1, 1e-3)
        return F.leaky_relu(y, self.slope)


class PoolFormerGroupNorm(nn.GroupNorm):
    """One group."""

    def __init__(self, n: int) -> None:
        super().__init__(1, n)


class BitGroupNorm(nn.GroupNorm):
    """With an activation as a child."""

    def __init__(self, n: int, act: nn.Module | None = None) -> None:
        super().__init__(4, n)
        self.activation = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class GroupNorm32(nn.GroupNorm):
    """Computes in float32, whatever its input; then a SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x.float()).type(x.dtype))


class GlobLN(nn.Module):
    """asteroid's global layer norm: no "norm" in its name, an eps as an argument of forward."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor, EPS: float = 1e-8) -> Tensor:
        dims = list(range(1, x.dim()))
        deviation = x - x.mean(dims, keepdim=True)
        normed = deviation / (deviation.square().mean(dims, keepdim=True) + EPS).sqrt()
        return (self.gamma * normed.transpose(1, -1) + self.beta).transpose(1, -1)


class FeatureNorm(nn.Module):
    """An InstanceNorm with parameters of shape (1, C, 1)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(1, n, 1)), nn.Parameter(torch.zeros(1, n, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, 2, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-6) * self.gain + self.offset


class NodeNorm(nn.Module):
    """torch_geometric's wrapper, which reads the statistics of its norm for a single node."""

    def __init__(self, n: int, affine: bool = True, single: bool = True) -> None:
        super().__init__()
        self.module, self.single = nn.BatchNorm1d(n, affine=affine), single

    def forward(self, x: Tensor) -> Tensor:
        if self.single and x.size(0) <= 1:
            m = self.module
            return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)
        return self.module(x)


class SpeechNorm(nn.Module):
    """speechbrain's wrapper: (N, L, C), around a norm without parameters."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(n)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(-1, 1)).transpose(1, -1)


class AbsNorm(FourBuffers):
    """Nearly a BatchNorm: the absolute value of gamma, as old in-place ABNs have it."""

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight.abs() + 1e-5) * (self.running_var + 1e-5).rsqrt()
        return (x - self.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ClampedNorm(OldFrozenBatchNorm):
    """A BatchNorm of what lies within 20 of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-20, 20))


class OwnGN(nn.Module):
    """A GroupNorm whose class derives from none, and isn't called one in full."""

    def __init__(self, groups: int, n: int) -> None:
        super().__init__()
        self.groups, self.gamma, self.beta = groups, nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], self.groups, -1)
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return y.view_as(x) * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


class OutsideNorm(FourBuffers):
    """Nearly a BatchNorm: eps is added to the standard deviation."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / (self.running_var.sqrt() + 1e-3)
        return (x - self.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ScaledNorm(nn.BatchNorm2d):
    """A BatchNorm times 1.00001."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.00001


class UnbiasedGroupNorm(nn.GroupNorm):
    """Nearly a GroupNorm: the unbiased variance."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.unflatten(1, (self.num_groups, -1)).flatten(2)
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True) + self.eps).sqrt()
        shape = (-1, *[1] * (x.dim() - 2))
        return y.view_as(x) * self.weight.view(shape) + self.bias.view(shape)


class BatchStatisticsNorm(nn.BatchNorm2d):
    """Looks at the batch in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class SaturatedNorm(nn.GroupNorm):
    """Followed by something that is no stock activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(super().forward(x))


class PositionNorm(nn.Module):
    """A LayerNorm over the channels at every position."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, n, 1, 1)), nn.Parameter(torch.zeros(1, n, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        return (x - mean) / (var + 1e-6).sqrt() * self.gamma + self.beta


class LastAxisNorm(nn.Module):
    """A LayerNorm over the last axis: on (N, C) alone the same as GroupNorm with one group."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        return (x - mean) / (var + 1e-6).sqrt() * self.gamma


class RunningScaler(nn.Module):
    """Running statistics of the last axis, as for the observations of an agent."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


class GraphNorm(nn.BatchNorm1d):
    """Takes which node belongs to which graph."""

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        return super().forward(x)


class HeldElsewhere(nn.BatchNorm2d):
    """Uses a module that isn't registered in it."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.others = [nn.BatchNorm2d(n)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
