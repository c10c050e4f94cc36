"""The layer as its authors wrote it, to be timed against; never imported by the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AuthorsLayer(nn.Module):
    """A transcription of the published code: (1, C, 1, 1) parameters, ``torch.var`` on views, unbiased variances,
    and every key group's value repeated up to the (N, C, 1, 1) of its channels.

    Takes contiguous (N, C, H, W) only, as theirs: ``view`` fails on channels_last.

    >>> AuthorsLayer(64)(torch.randn(2, 64, 4, 4)).shape
    torch.Size([2, 64, 4, 4])
    """

    def __init__(self, num_channels: int, num_groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups, self.eps, self.key_group_size = num_groups, eps, 16
        keys = num_channels // self.key_group_size
        width = max(2, keys // 16)
        self.weight_bias = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.bias_bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))
        self.fc_embed = nn.Sequential(nn.Linear(keys, width, bias=False), nn.ReLU(inplace=True))
        self.fc_weight = nn.Sequential(self.fc_embed, nn.Linear(width, keys, bias=False), nn.Sigmoid())
        self.fc_bias = nn.Sequential(self.fc_embed, nn.Linear(width, keys, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        samples, channels, height, width = x.size()
        keys = channels // self.key_group_size
        grouped = x.view(samples, keys, -1)
        key_mean, key_var = grouped.mean(-1), torch.var(grouped, -1)
        weight = self._repeat(self.fc_weight(key_var)) + self.weight_bias
        bias = self._repeat(self.fc_bias(key_mean)) + self.bias_bias
        grouped = x.view(samples, self.num_groups, -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True)
        grouped = (grouped - mean) / (var + self.eps).sqrt()
        return grouped.view(samples, channels, height, width) * weight + bias

    def _repeat(self, values: Tensor) -> Tensor:
        samples, keys = values.shape
        repeated = values.view(samples, keys, 1).repeat(1, 1, self.key_group_size)
        return repeated.view(samples, keys * self.key_group_size, 1, 1)
