"""ILM Norm as a function of tensors (Jia, Chen, Chen: Instance-Level Meta Normalization, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.autocast import no_autocast
from ilmconvert.nn.composed import composed
from ilmconvert.nn.fused import ACTIVATIONS, can_fuse, fused
from ilmconvert.nn.inference import infer, inference_constants, is_exported, suits
from ilmconvert.nn.kernels.formulas import statistics_dtype
from ilmconvert.nn.restore_range import to_range


def ilm_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    encoder: Tensor | None = None,
    weight_decoder: Tensor | None = None,
    bias_decoder: Tensor | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    correction: int = 0,
    restore_weight: Tensor | None = None,
    restore_bias: Tensor | None = None,
    ref_mean: Tensor | None = None,
    ref_std: Tensor | None = None,
    restore_bound: float | None = None,
    restore_range: Sequence[float] | None = None,
    activation: str = "none",
    input_dims: int | None = None,
) -> Tensor:
    r"""Instance-Level Meta Normalization, with the optional restoring path.

    Each sample's channels are standardised in ``num_groups`` groups; the scale and shift that follow are predicted
    from the mean m and the variance v of its K key groups (section 3 of the paper) and, on the restoring path,
    from the deviation of the group statistics from their reference values:

    .. math::
        y &= \omega \, \frac{x - \mu_g}{\sigma_g} + \beta, \qquad \sigma_g = \sqrt{\operatorname{var}_g + \text{eps}} \\
        \omega &= \text{weight} + \operatorname{sigmoid}(D_w \, \operatorname{relu}(E v)) - \frac{1}{2}
            + \text{restore_weight} \cdot \frac{\sigma_g - \text{ref_std}}{\text{ref_std}} \\
        \beta &= \text{bias} + \tanh(D_b \, \operatorname{relu}(E m))
            + \text{restore_bias} \cdot \frac{\mu_g - \text{ref_mean}}{\text{ref_std}}

    The paper's ``omega = B_w + sigmoid(.)`` is ``weight = B_w + 1/2``, so that a zero decoder changes nothing.
    Statistics and coefficients are float32 whatever the type of ``x`` (float64 for float64), also under autocast.

    Args:
        x: (N, C, *), any number of positions, also none.
        weight, bias: (C,), or None for 1 and 0.
        encoder: E, (R, K). K, the number of key groups, divides C. Without it there is no meta-network.
        weight_decoder, bias_decoder: D_w and D_b, (K, R).
        num_groups: G, divides C.
        correction: 0 for biased variances, 1 for unbiased ones (those of the authors' code); a group of one
            element has variance 0 either way.
        restore_weight, restore_bias: (C,), both or neither.
        ref_mean, ref_std: (G,), with the former.
        restore_bound: tau > 0; each deviation z becomes tau * tanh(z / tau).
        restore_range: limits of an instance's contrast and colour, a
            :class:`ilmconvert.nn.restore_range.RestoreRange`. Within them nothing changes; on the restoring path an
            instance outside counts as if it had been brought to the limit.
        activation: "relu", "silu" or "hardswish" of the result; on GPUs one read and write of it less.
        input_dims: dimensions of ``x``; with one less, ``x`` is a single instance (C, *), as InstanceNorm takes it.
            None for any number of dimensions from two.

    Returns:
        (N, C, *), type and memory format of ``x``.

    Raises:
        ValueError: ``x`` isn't (N, C, *) with the C of the parameters or has not ``input_dims`` dimensions, tensors
            that belong together are missing, or there is no such activation.

    >>> import torch
    >>> x = torch.randn(2, 32, 5, 5)
    >>> E, D = torch.randn(2, 2), torch.zeros(2, 2)
    >>> y = ilm_norm(x, None, None, E, D, D, num_groups=8)
    >>> torch.allclose(y, torch.nn.functional.group_norm(x, 8), atol=1e-6)
    True
    """
    limits = None if restore_range is None else to_range(restore_range)
    settings = Settings(num_groups, 1 if encoder is None else encoder.shape[1], eps, correction, restore_bound, limits)
    single = input_dims is not None and x.dim() == input_dims - 1
    x = x.unsqueeze(0) if single else x
    if input_dims is not None and x.dim() != input_dims:
        raise ValueError(
            f"expected input of {input_dims} dimensions, or {input_dims - 1} for one instance, got {x.dim()}"
        )
    _check_input(x, weight, settings.finest)
    if encoder is not None and (weight_decoder is None or bias_decoder is None):
        raise ValueError("an encoder needs both decoders")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")
    restoring = (restore_weight, restore_bias, ref_mean, ref_std)
    missing = (restore_weight is None) + (restore_bias is None) + (ref_mean is None) + (ref_std is None)
    if missing not in (0, 4):
        raise ValueError("give restore_weight, restore_bias, ref_mean and ref_std together, or none of them")
    tensors = Tensors(weight, bias, encoder, weight_decoder, bias_decoder, *restoring)
    with no_autocast(x.device.type):
        # One layer of a network has a range, at most: its gradient isn't worth writing by hand.
        by_hand = limits is None and can_fuse(x, tensors)
        if by_hand:
            y = fused(x, tensors, settings, activation)
        elif is_exported() and suits(settings, tensors):
            constants = inference_constants(tensors, settings, x.shape[1], statistics_dtype(x), x.device)
            y = ACTIVATIONS[activation](infer(x, constants, settings))
        else:
            y = ACTIVATIONS[activation](composed(x, tensors, settings))
    return y.squeeze(0) if single else y


def _check_input(x: Tensor, weight: Tensor | None, finest: int) -> None:
    channels = x.shape[1] if x.dim() >= 2 else 0
    if not channels or (channels % finest if weight is None else channels != weight.numel()):
        expected = f"C a multiple of {finest}" if weight is None else f"C = {weight.numel()}"
        raise ValueError(f"expected input of shape (N, C, *) with {expected}, got {tuple(x.shape)}")
