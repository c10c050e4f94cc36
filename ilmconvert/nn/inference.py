"""ILM Norm for inference elsewhere: few operations, which exporters write down and runtimes compute as they stand.

What the parameters alone decide stands in :class:`InferenceConstants`. The statistics are those of the finest partition
of the channels, F groups, of which both others are unions. Linear maps of these (N, F) numbers, written as 1 x 1
convolutions, which keep the number of dimensions, merge groups, encode both features and repeat the values of key
groups. Both gates come from one tanh, since ``sigmoid(z) - 1/2 = tanh(z / 2) / 2``; the factor 1/2 goes into
``2 sigma``.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ilmconvert.nn.arguments import Settings, Tensors, restoring_constants
from ilmconvert.nn.kernels.formulas import statistics_dtype


class InferenceConstants(NamedTuple):
    """Of a layer with F finest groups, in G groups and K key groups of f and k of them, with codes of width R.

    Attributes:
        deviate: (F, f, 1, 1), by groups: from the finest groups' means to their deviations from their group's.
        deviate_key: (F, k, 1, 1), the same for key groups.
        pool, pool_bias: (F, f, 1, 1), by groups: from variances about the group's mean to 4 (var_g + eps), for each
            finest group.
        mix: from variances, means and squared deviations to the codes of v and m, (2 R, 3 F, 1, 1); 2 F without
            deviations. Where every finest group is a key group its first F rows are those of ``pool``.
        mix_bias: of these.
        decode: (2 F, 2 R, 1, 1), from the codes to the arguments of the tanh of both gates.
        base: (2 F, C / F, 1): twice what is added to the gate of the weight, and what is added to that of the bias.
        gain, bias_gain: (F, C / F, 1) of the restoring path.

    ``deviate`` and ``pool`` are None where F = G, ``deviate_key`` where F = K, ``mix`` and ``decode`` without a
    meta-network, the gains without a restoring path.
    """

    deviate: Tensor | None
    deviate_key: Tensor | None
    pool: Tensor | None
    pool_bias: Tensor | None
    mix: Tensor | None
    mix_bias: Tensor | None
    decode: Tensor | None
    base: Tensor
    gain: Tensor | None
    bias_gain: Tensor | None


def is_exported() -> bool:
    """Whether the operations are written down for a runtime: by torch.export, or an exporter to ONNX."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def suits(s: Settings, t: Tensors) -> bool:
    """Whether :func:`infer` computes such a layer: bounds, ranges and unbiased variances are left to the formula."""
    bounded = t.restore_weight is not None and (s.restore_bound is not None or s.restore_range is not None)
    return not bounded and not s.correction


def inference_constants(
    t: Tensors, s: Settings, channels: int, dtype: torch.dtype, device: torch.device
) -> InferenceConstants:
    """Those of a layer that :func:`suits`, as the formula computes them in ``dtype``; ``device`` is that of ``t``."""
    t = t.to(dtype)
    finest = s.finest
    restores = t.restore_weight is not None
    reference = t.encoder if t.encoder is not None else t.weight if t.weight is not None else t.restore_weight
    like = torch.empty(0, dtype=dtype, device=device) if reference is None else reference.new_empty(0)
    if restores:
        path = restoring_constants(t, s)
        weight, bias = path.base_weight, path.base_bias
        gains: tuple[Tensor | None, Tensor | None] = (
            path.gain.reshape(finest, -1, 1),
            path.bias_gain.reshape(finest, -1, 1),
        )
    else:
        weight = like.new_ones(channels) if t.weight is None else t.weight
        bias = like.new_zeros(channels) if t.bias is None else t.bias
        gains = None, None
    base = torch.cat((2 * weight, bias)).reshape(2 * finest, -1, 1)
    in_group, in_key = finest // s.num_groups, finest // s.num_key_groups
    mix = decode = mix_bias = None
    if t.encoder is not None:
        mix = _mix(t.encoder, in_key, with_deviations=in_key > 1 or in_group > 1)
        decode = _decode(t, in_key)
        if in_group > 1 and in_key == 1:
            groups = torch.eye(s.num_groups, dtype=like.dtype, device=like.device)
            pool = groups.repeat_interleave(in_group, 0).repeat_interleave(in_group, 1) * (4 / in_group)
            mix = torch.cat((torch.cat((pool, 0 * pool, pool), 1), mix))
            mix_bias = torch.cat((like.new_full((finest,), 4 * s.eps), like.new_full((len(mix) - finest,), 0.0)))
    separate = in_group > 1 and (mix is None or in_key > 1)
    return InferenceConstants(
        _deviate(like, in_group, s.num_groups),
        None if mix is None else _deviate(like, in_key, s.num_key_groups),
        like.new_full((finest, in_group, 1, 1), 4 / in_group) if separate else None,
        like.new_full((finest,), 4 * s.eps) if separate else None,
        _as_kernel(mix),
        mix_bias,
        _as_kernel(decode),
        base,
        *gains,
    )


def infer(x: Tensor, c: InferenceConstants, s: Settings) -> Tensor:
    """:func:`ilmconvert.nn.ilm_norm` of a layer that :func:`suits`."""
    grouped = _in_finest_groups(x, s.finest)
    mean = grouped.mean((2, 3), keepdim=True)
    centred = grouped - mean
    var = (centred * centred).mean((2, 3), keepdim=True)
    from_group = None if c.deviate is None else F.conv2d(mean, c.deviate, groups=s.num_groups)
    square = None if from_group is None else from_group * from_group
    fourfold, gates = _meta_network(mean, var, square, c, s)
    if fourfold is None:
        if c.pool is None or square is None:
            fourfold = var * 4 + 4 * s.eps
        else:
            fourfold = F.conv2d(var + square, c.pool, c.pool_bias, groups=s.num_groups)
    omega, shift = (c.base if gates is None else gates + c.base).chunk(2, -3)
    scale = omega / fourfold.sqrt()
    if c.gain is not None:
        scale = scale + c.gain
    if from_group is None:
        # About the group's mean no digits are lost, however large it is.
        y = centred * scale + (shift if c.bias_gain is None else shift + mean * c.bias_gain)
    else:
        of_mean = -scale if c.bias_gain is None else c.bias_gain - scale
        y = grouped * scale + (shift + (mean - from_group) * of_mean)
    return y.reshape(_fixed(x.shape)).to(x.dtype)


def _meta_network(
    mean: Tensor, var: Tensor, square: Tensor | None, c: InferenceConstants, s: Settings
) -> tuple[Tensor | None, Tensor | None]:
    """4 (var_g + eps) where ``mix`` has it, and both gates."""
    if c.mix is None or c.decode is None:
        return None, None
    if c.deviate_key is not None:
        from_key = F.conv2d(mean, c.deviate_key, groups=s.num_key_groups)
        square = from_key * from_key
    features = torch.cat((var, mean) if square is None else (var, mean, square), 1)
    mixed = F.conv2d(features, c.mix, c.mix_bias).relu()
    fourfold = None
    if c.mix_bias is not None:
        fourfold, mixed = mixed.split((s.finest, len(c.mix) - s.finest), 1)
    return fourfold, F.conv2d(mixed, c.decode).tanh()


def _in_finest_groups(x: Tensor, finest: int) -> Tensor:
    """(N, C, *) to (N, F, C / F, positions) in the type of statistics."""
    positions = prod(x.shape[2:])
    known = isinstance(positions, int)
    shape = (-1 if known else x.shape[0], finest, x.shape[1] // finest, positions if known else -1)
    return x.to(statistics_dtype(x)).reshape(shape)


def _fixed(shape: torch.Size) -> tuple[int, ...]:
    """``shape`` with an open batch size where that is the only one: exporters then write a constant."""
    return (-1, *shape[1:]) if all(isinstance(n, int) for n in shape[1:]) else tuple(shape)


def _deviate(like: Tensor, size: int, groups: int) -> Tensor | None:
    if size == 1:
        return None
    return (torch.eye(size, dtype=like.dtype, device=like.device) - 1 / size).repeat(groups, 1)[..., None, None]


def _mix(encoder: Tensor, in_key: int, with_deviations: bool) -> Tensor:
    """The encoder of v, from variances and squared deviations, above that of m."""
    encode = encoder.repeat_interleave(in_key, 1) / in_key
    nothing = torch.zeros_like(encode)
    of_v, of_m = [encode, nothing], [nothing, encode]
    if with_deviations:
        of_v.append(encode if in_key > 1 else nothing)
        of_m.append(nothing)
    return torch.cat((torch.cat(of_v, 1), torch.cat(of_m, 1)))


def _decode(t: Tensors, in_key: int) -> Tensor:
    assert t.weight_decoder is not None
    assert t.bias_decoder is not None
    of_weight, of_bias = (d.repeat_interleave(in_key, 0) for d in (t.weight_decoder / 2, t.bias_decoder))
    nothing = torch.zeros_like(of_bias)
    return torch.cat((torch.cat((of_weight, nothing), 1), torch.cat((nothing, of_bias), 1)))


def _as_kernel(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix[..., None, None]
