"""The layer as the paper writes it, group by group and term by term; slow, plain, and never imported by the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def group_statistics(x: Tensor, size: int, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every ``size`` channels of (N, C, *), each (N, C / size)."""
    means, variances = [], []
    for sample in x:
        groups = [sample[i : i + size].reshape(-1) for i in range(0, len(sample), size)]
        means.append(torch.stack([g.sum() / g.numel() for g in groups]))
        variances.append(torch.stack([((g - g.mean()) ** 2).sum() / max(g.numel() - correction, 1) for g in groups]))
    return torch.stack(means), torch.stack(variances)


def paper_ilm_norm(
    x: Tensor,
    b_omega: Tensor,
    b_beta: Tensor,
    encoder: Tensor,
    weight_decoder: Tensor,
    bias_decoder: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    correction: int = 1,
) -> Tensor:
    """Equations of section 3 with the authors' B_omega (theirs starts at 1) and unbiased variances."""
    channels = x.shape[1]
    key_size = channels // encoder.shape[1]
    mu, var = group_statistics(x, channels // num_groups, correction)
    m, v = group_statistics(x, key_size, correction)
    omega = torch.sigmoid(torch.relu(v @ encoder.T) @ weight_decoder.T)
    beta = torch.tanh(torch.relu(m @ encoder.T) @ bias_decoder.T)
    shape = (len(x), channels) + (1,) * (x.dim() - 2)
    up = {k: t.repeat_interleave(key_size, 1).view(shape) for k, t in {"omega": omega, "beta": beta}.items()}
    mu, var = (t.repeat_interleave(channels // num_groups, 1).view(shape) for t in (mu, var))
    b_shape = (1, channels) + (1,) * (x.dim() - 2)
    standardised = (x - mu) / torch.sqrt(var + eps)
    return (b_omega.view(b_shape) + up["omega"]) * standardised + (b_beta.view(b_shape) + up["beta"])


class AuthorsLayer(nn.Module):
    """State-dict names and parameter shapes of the authors' code around :func:`paper_ilm_norm`."""

    def __init__(self, channels: int, num_groups: int, key_size: int = 16, width: int = 2) -> None:
        super().__init__()
        self.num_groups = num_groups
        key_groups = channels // key_size
        self.fc_embed = nn.Sequential(nn.Linear(key_groups, width, bias=False), nn.ReLU())
        self.fc_weight = nn.Sequential(self.fc_embed, nn.Linear(width, key_groups, bias=False), nn.Sigmoid())
        self.fc_bias = nn.Sequential(self.fc_embed, nn.Linear(width, key_groups, bias=False), nn.Tanh())
        self.weight_bias = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias_bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        decoders = self.fc_weight[1].weight, self.fc_bias[1].weight
        parts = (self.weight_bias.flatten(), self.bias_bias.flatten(), self.fc_embed[0].weight, *decoders)
        return paper_ilm_norm(x, *parts, self.num_groups)
