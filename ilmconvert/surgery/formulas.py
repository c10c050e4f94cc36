"""The formulas that a norm of an unknown class is held against, and their eps from what it gives. All in float64."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ilmconvert.surgery.difference import relative_difference

Values = Mapping[str, Tensor]


def batch_norm(x: Tensor, values: Values, eps: float) -> Tensor:
    """BatchNorm in evaluation: (N, C, *) by vectors ``running_mean``, ``running_var``, and ``weight``, ``bias``."""
    deviation = x - per_channel(values["running_mean"], x)
    return affine(deviation / (per_channel(values["running_var"], x) + eps).sqrt(), values)


def group_norm(x: Tensor, values: Values, eps: float, num_groups: int) -> Tensor:
    """GroupNorm; InstanceNorm with C groups, LayerNorm over all but the first dimension with one."""
    mean, var = group_statistics(x, num_groups)
    return affine((x - mean) / (var + eps).sqrt(), values)


def affine(x: Tensor, values: Values) -> Tensor:
    """``weight * x + bias``, as far as there are such."""
    if "weight" in values:
        x = x * per_channel(values["weight"], x)
    return x + per_channel(values["bias"], x) if "bias" in values else x


def group_statistics(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every element's group, expanded to the shape of ``x``."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean = grouped.mean(2, keepdim=True)
    var = (grouped - mean).square().mean(2, keepdim=True)
    return mean.expand_as(grouped).reshape(x.shape), var.expand_as(grouped).reshape(x.shape)


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) in a shape that broadcasts over (N, C, *)."""
    return vector.view(-1, *[1] * (x.dim() - 2))


def solve_eps(var: Tensor, total: Tensor, spread: float) -> float | None:
    """The eps of which ``total`` is ``var + eps``, everywhere; None where no one number is.

    Args:
        var: variances, (M,).
        total: what the outputs say of ``var + eps``, (M,).
        spread: how far the values for eps may lie apart, relative to ``var + eps``.

    >>> import torch
    >>> solve_eps(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 1.25]), 1e-6)
    0.25
    >>> solve_eps(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 1.5]), 1e-6) is None
    True
    """
    found = total - var
    if not found.isfinite().all():
        return None
    eps = found.median().item()
    if not bool(((found - eps).abs() <= spread * total).all()):
        return None
    return max(eps, 0.0) if eps > -spread * total.max().item() else None


def snap(eps: float, declared: list[float], tolerance: float) -> float:
    """The number that was meant: one that the module holds, or a short decimal, where the solution lies on it.

    >>> snap(1.00000000001e-5, [], 1e-9), snap(1.5258789e-05, [1.52587890625e-05], 1e-6), snap(0.123456, [], 1e-9)
    (1e-05, 1.52587890625e-05, 0.123456)
    """
    for candidate in (*declared, float(f"{eps:.3g}")):
        if abs(candidate - eps) <= tolerance * eps:
            return candidate
    return eps


def find_activation(z: Tensor, y: Tensor, tolerance: float) -> nn.Module | None:
    """A stock activation that takes ``z`` to ``y``, as a new module; None where none does.

    >>> import torch
    >>> z = torch.linspace(-4, 4, 100, dtype=torch.float64)
    >>> find_activation(z, nn.LeakyReLU(0.1)(z), 1e-9)
    LeakyReLU(negative_slope=0.1)
    """
    below = z < -1e-3
    slope = float((y[below] / z[below]).median()) if below.any() else 0.0
    candidates: list[nn.Module] = [
        nn.ReLU(),
        nn.SiLU(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.Hardswish(),
        nn.Mish(),
        nn.ELU(),
        nn.LeakyReLU(float(f"{slope:.4g}")),
        nn.Softplus(),
    ]
    return next((act for act in candidates if relative_difference([y], [act(z)]) <= tolerance), None)
