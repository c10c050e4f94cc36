"""The best values of one layer for its statistics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ilmconvert.calibration.statistics import Statistics

Values = dict[str, Tensor]

META = ("encoder", "weight_decoder", "bias_decoder")
_STEPS = 60  # of L-BFGS; more change nothing that a held-out sample shows
_FLOOR = 0.05
_TINY = 1e-12


def sample_weights(s: Statistics) -> Tensor:
    """(N, 1), of mean 1: every sample counts alike, however strong its contrast.

    What follows is normalised again, sample by sample, so that relative errors matter.
    """
    energy = (s.target_var + (s.target_mean - s.target_mean.mean(0)).square()).mean(1, keepdim=True)
    weights = 1 / (energy + _FLOOR * energy.mean() + _TINY)
    return weights / weights.mean()


def weighted_error(s: Statistics, omega: Tensor, beta: Tensor) -> Tensor:
    """Squared distance to the target over the target's variance, averaged over channels; a scalar.

    Channels count alike, whatever their variance: the next layer's weights make up for that.
    """
    w = sample_weights(s) / len(s.omega)
    centre = (w * s.target_mean).sum(0)
    var = (w * (s.target_var + (s.target_mean - centre).square())).sum(0)
    return ((w * s.error(omega, beta)).sum(0) / (var + _FLOOR * var.mean() + _TINY)).mean()


def fit_constants(s: Statistics, weight: Tensor, bias: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weighted least squares in closed form for constant ``weight`` and ``bias``, each channel by itself.

    Args:
        s: of all samples, weighted by :func:`sample_weights`.
        weight, bias: (C,), the start. It counts like ``ridge`` times as many samples, on which it is right; it also
            stands for channels whose input doesn't vary.
        ridge: at least 0.

    Returns:
        weight and bias, (C,), float64.
    """
    pooled = _Pooled(s, weight, bias, ridge)
    gain = torch.where(pooled.varies, pooled.covariance / pooled.var_h.clamp(min=_TINY), pooled.start)
    return gain, pooled.mean_t - gain * pooled.mean_h


def match_constants(
    s: Statistics, weight: Tensor, bias: Tensor, ridge: float = 0.0, damping: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Constant ``weight`` and ``bias`` that give each channel the target's mean and variance over all samples.

    The moments start with the moments that the layer really meets. Where a sample would need another weight than the
    rest, least squares (:func:`fit_constants`) settles for less variance than the target has, layer after layer.
    Arguments and results are those of :func:`fit_constants`; with ``damping`` the weight goes only a part of its way
    from the start, and the bias follows.
    """
    pooled = _Pooled(s, weight, bias, ridge)
    sign = torch.where(pooled.start < 0, -1.0, 1.0)
    spread = (pooled.var_t.clamp(min=0) / pooled.var_h.clamp(min=_TINY)).sqrt()
    matched = torch.where(pooled.varies, sign * spread, pooled.start)
    gain = torch.lerp(matched, pooled.start, damping)
    return gain, pooled.mean_t - gain * pooled.mean_h


class _Pooled:
    """Moments per channel over all samples and positions, (C,), with the start's share."""

    def __init__(self, s: Statistics, weight: Tensor, bias: Tensor, ridge: float) -> None:
        self.start, bias = weight.detach().cpu().double(), bias.detach().cpu().double()
        w = sample_weights(s) / len(s.omega)
        share = ridge / (1 + ridge)

        def mixed(of_data: Tensor, of_start: Tensor) -> Tensor:
            return (1 - share) * (w * of_data).sum(0) + share * (w * of_start).sum(0)

        square_h = s.var_h + s.mean_h.square()
        target = self.start * s.mean_h + bias
        self.mean_h, self.mean_t = mixed(s.mean_h, s.mean_h), mixed(s.target_mean, target)
        self.var_h = mixed(square_h, square_h) - self.mean_h.square()
        square_t = s.target_var + s.target_mean.square()
        self.var_t = mixed(square_t, self.start.square() * s.var_h + target.square()) - self.mean_t.square()
        product = mixed(s.omega * square_h + s.beta * s.mean_h, self.start * square_h + bias * s.mean_h)
        self.covariance = product - self.mean_h * self.mean_t
        self.varies = self.var_h > _TINY


def fit_meta(s: Statistics, start: Values, *, correction: int, decay: float) -> Values:
    """All values of a layer without restoring path, by L-BFGS on the quadratic error that the statistics give.

    Args:
        s: of all samples, weighted by :func:`sample_weights`.
        start: ``weight``, ``bias``, ``encoder``, ``weight_decoder``, ``bias_decoder``.
        correction: of the layer's variances.
        decay: of the decoders' squares and the encoder's relative way from its start; the error itself is in units of
            the target's variance.

    Returns:
        the same values, float64; the start itself where the fit isn't finite.
    """
    first = {name: t.detach().cpu().double().contiguous() for name, t in start.items()}
    values = {name: t.clone().requires_grad_(True) for name, t in first.items()}
    unit = first["encoder"].square().mean(0).sqrt().clamp(min=_TINY)
    key_mean, key_var = s.key_features(first["encoder"].shape[1], correction)
    optimizer = torch.optim.LBFGS(
        list(values.values()), max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = weighted_error(s, *rescaling(values, key_mean, key_var))
        way = ((values["encoder"] - first["encoder"]) / unit).square().sum()
        size = values["weight_decoder"].square().sum() + values["bias_decoder"].square().sum()
        loss = error + decay * (size + way)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    fitted = {name: t.detach() for name, t in values.items()}
    return fitted if all(bool(t.isfinite().all()) for t in fitted.values()) else first


def respread(s: Statistics, values: Values, *, correction: int) -> Values:
    """``values`` with the weight and bias that give each channel the target's mean and variance over all samples.

    What :func:`match_constants` does, with the meta-network's part of omega and beta as it is. A channel for which no
    weight of the old sign does keeps its own.
    """
    key_features = s.key_features(values["encoder"].shape[1], correction)
    zero = torch.zeros_like(values["weight"])
    omega, beta = rescaling({**values, "weight": zero, "bias": zero}, *key_features)
    w = sample_weights(s) / len(s.omega)

    def mean(t: Tensor) -> Tensor:
        return (w * t).sum(0)

    # weight h + rest, with rest = omega h + beta; its variance is a quadratic in weight
    square_h, mean_h = s.var_h + s.mean_h.square(), mean(s.mean_h)
    mean_rest, mean_t = mean(omega * s.mean_h + beta), mean(s.target_mean)
    a = mean(square_h) - mean_h.square()
    b = mean(omega * square_h + beta * s.mean_h) - mean_h * mean_rest
    c = mean(omega.square() * square_h + 2 * omega * beta * s.mean_h + beta.square()) - mean_rest.square()
    wanted = mean(s.target_var + s.target_mean.square()) - mean_t.square()
    root = b.square() - a * (c - wanted)
    sign = torch.where(values["weight"] < 0, -1.0, 1.0)
    solved = (sign * root.clamp(min=0).sqrt() - b) / a.clamp(min=_TINY)
    fits = (root >= 0) & (a > _TINY) & (solved * sign > 0)
    weight = torch.where(fits, solved, values["weight"])
    return {**values, "weight": weight, "bias": mean_t - weight * mean_h - mean_rest}


def rescaling(values: Values, key_mean: Tensor, key_var: Tensor) -> tuple[Tensor, Tensor]:
    """omega and beta (N, C) of the paper's layer (section 3) for key features (N, K)."""
    code_var, code_mean = (F.linear(t, values["encoder"]).relu() for t in (key_var, key_mean))
    size = values["weight"].numel() // key_mean.shape[1]
    omega = F.linear(code_var, values["weight_decoder"]).sigmoid() - 0.5
    beta = F.linear(code_mean, values["bias_decoder"]).tanh()
    return values["weight"] + omega.repeat_interleave(size, 1), values["bias"] + beta.repeat_interleave(size, 1)
