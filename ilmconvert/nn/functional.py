"""ILM Norm as a function of tensors (Jia, Chen, Chen: Instance-Level Meta Normalization, CVPR 2019)."""

from __future__ import annotations

import contextlib
from math import lcm, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn import autograd
from ilmconvert.nn.kernels import merge_moments


def ilm_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    encoder: Tensor,
    weight_decoder: Tensor,
    bias_decoder: Tensor,
    *,
    num_groups: int,
    eps: float = 1e-5,
    correction: int = 0,
    restore_weight: Tensor | None = None,
    restore_bias: Tensor | None = None,
    ref_mean: Tensor | None = None,
    ref_std: Tensor | None = None,
    restore_bound: float | None = None,
) -> Tensor:
    r"""Instance-Level Meta Normalization, with the optional restoring path.

    Each sample's channels are standardised in ``num_groups`` groups; the scale and shift that follow are predicted
    from the mean m and the variance v of its K key groups (section 3 of the paper) and, on the restoring path,
    from the deviation of the group statistics from their reference values:

    .. math::
        y &= \omega \, (x - \mu_g) / \sigma_g + \beta, \qquad \sigma_g = \sqrt{var_g + eps} \\
        \omega &= weight + sigmoid(D_w \, relu(E v)) - 1/2 + restore\_weight \cdot (\sigma_g - ref\_std) / ref\_std \\
        \beta &= bias + tanh(D_b \, relu(E m)) + restore\_bias \cdot (\mu_g - ref\_mean) / ref\_std

    The paper's ``omega = B_w + sigmoid(.)`` is ``weight = B_w + 1/2``, so that a zero decoder changes nothing.
    Statistics and coefficients are float32 whatever the type of ``x`` (float64 for float64), also under autocast.

    Args:
        x: (N, C, *), any number of positions, also none.
        weight, bias: (C,), or None for 1 and 0.
        encoder: E, (R, K). K, the number of key groups, divides C.
        weight_decoder, bias_decoder: D_w and D_b, (K, R).
        num_groups: G, divides C.
        correction: 0 for biased variances, 1 for unbiased ones (those of the authors' code); a group of one
            element has variance 0 either way.
        restore_weight, restore_bias: (C,), both or neither.
        ref_mean, ref_std: (G,), with the former.
        restore_bound: tau > 0; each deviation z becomes tau * tanh(z / tau).

    Returns:
        (N, C, *), type and memory format of ``x``.

    Raises:
        ValueError: ``x`` isn't (N, C, *) with the C of the parameters.

    >>> x = torch.randn(2, 32, 5, 5)
    >>> E, D = torch.randn(2, 2), torch.zeros(2, 2)
    >>> y = ilm_norm(x, None, None, E, D, D, num_groups=8)
    >>> torch.allclose(y, F.group_norm(x, 8), atol=1e-6)
    True
    """
    num_key_groups = encoder.shape[1]
    finest = lcm(num_groups, num_key_groups)
    channels = _check_input(x, weight, finest)
    with _no_autocast(x.device.type):
        mean, var = autograd.moments(x, finest)
        count = prod(x.shape[2:]) * (channels // finest)
        mu, var_g = _corrected(mean, var, num_groups, count, correction)
        key = _corrected(mean, var, num_key_groups, count, correction)
        sigma = (var_g + eps).sqrt()
        omega, beta = _rescale(*key, weight, bias, encoder, weight_decoder, bias_decoder, channels)
        if restore_weight is not None:
            assert restore_bias is not None
            assert ref_mean is not None
            assert ref_std is not None
            ref_mean, ref_std = ref_mean.to(mu.dtype), ref_std.to(mu.dtype)
            omega = _restore(omega, restore_weight, (sigma - ref_std) / ref_std, restore_bound)
            beta = _restore(beta, restore_bias, (mu - ref_mean) / ref_std, restore_bound)
        scale = omega.unflatten(1, (num_groups, -1)) / sigma.unsqueeze(2)
        shift = torch.addcmul(beta.unflatten(1, (num_groups, -1)), scale, mu.unsqueeze(2), value=-1)
        return autograd.scale_shift(x, scale.flatten(1), shift.flatten(1))


def _check_input(x: Tensor, weight: Tensor | None, finest: int) -> int:
    """The number of channels of ``x``."""
    channels = x.shape[1] if x.dim() >= 2 else 0
    if not channels or (channels % finest if weight is None else channels != weight.numel()):
        expected = f"C a multiple of {finest}" if weight is None else f"C = {weight.numel()}"
        raise ValueError(f"expected input of shape (N, C, *) with {expected}, got {tuple(x.shape)}")
    return channels


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _corrected(mean: Tensor, var: Tensor, num_groups: int, count: int, correction: int) -> tuple[Tensor, Tensor]:
    """Moments of ``num_groups`` groups from the finest ones, which hold ``count`` elements each."""
    total = count * (mean.shape[1] // num_groups)
    mean, var = merge_moments(mean, var, num_groups)
    if correction and total > correction:
        var = var * (total / (total - correction))
    return mean, var


def _rescale(
    key_mean: Tensor,
    key_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    encoder: Tensor,
    weight_decoder: Tensor,
    bias_decoder: Tensor,
    num_channels: int,
) -> tuple[Tensor, Tensor]:
    """The meta-network: omega and beta (N, C) from the key features (N, K)."""
    dtype = key_mean.dtype
    code_var, code_mean = F.linear(torch.stack((key_var, key_mean)), encoder.to(dtype)).relu()
    omega = F.linear(code_var, weight_decoder.to(dtype)).sigmoid() - 0.5
    beta = F.linear(code_mean, bias_decoder.to(dtype)).tanh()
    return _add_groups(weight, omega, num_channels, 1.0), _add_groups(bias, beta, num_channels, 0.0)


def _add_groups(base: Tensor | None, values: Tensor, num_channels: int, default: float) -> Tensor:
    """(C,) plus (N, K), each key group's value repeated over its channels: (N, C)."""
    groups = values.shape[1]
    if base is None:
        base = values.new_full((num_channels,), default)
    return (base.to(values.dtype).view(groups, -1) + values.unsqueeze(2)).flatten(1)


def _restore(t: Tensor, gain: Tensor, deviation: Tensor, bound: float | None) -> Tensor:
    """Add ``gain`` (C,) times the bounded ``deviation`` (N, G) to ``t`` (N, C)."""
    if bound is not None:
        deviation = bound * torch.tanh(deviation / bound)
    groups = deviation.shape[1]
    gain = gain.to(t.dtype).view(groups, -1)
    return torch.addcmul(t.unflatten(1, (groups, -1)), gain, deviation.unsqueeze(2)).flatten(1)
