"""An ILM Norm's inference form as one operation while torch traces, and as ONNX nodes afterwards.

Each operation of torch is traced, decomposed and translated by itself, which takes most of the time of an export.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lcm
from typing import Any

import torch
from torch import Tensor

from ilmconvert.nn.arguments import Settings
from ilmconvert.nn.inference import InferenceConstants, infer

_SCHEMA = (
    "(Tensor x, "
    + ", ".join(f"Tensor{'' if name == 'base' else '?'} {name}" for name in InferenceConstants._fields)
    + ", int num_groups, int num_key_groups, float eps) -> Tensor"
)


@torch.library.custom_op("ilmconvert::inference_norm", mutates_args=(), schema=_SCHEMA)
def inference_norm(
    x: Tensor,
    deviate: Tensor | None,
    deviate_key: Tensor | None,
    pool: Tensor | None,
    pool_bias: Tensor | None,
    mix: Tensor | None,
    mix_bias: Tensor | None,
    decode: Tensor | None,
    base: Tensor,
    gain: Tensor | None,
    bias_gain: Tensor | None,
    num_groups: int,
    num_key_groups: int,
    eps: float,
) -> Tensor:
    """:func:`ilmconvert.nn.inference.infer`."""
    constants = InferenceConstants(deviate, deviate_key, pool, pool_bias, mix, mix_bias, decode, base, gain, bias_gain)
    return infer(x, constants, Settings(num_groups, num_key_groups, eps, 0, None, None)).clone()


@inference_norm.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def translations() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export``'s ``custom_translation_table``."""
    return {torch.ops.ilmconvert.inference_norm.default: _in_onnx}


def _in_onnx(
    x: Any, deviate: Any, deviate_key: Any, pool: Any, pool_bias: Any, mix: Any, mix_bias: Any, decode: Any,
    base: Any, gain: Any, bias_gain: Any, num_groups: int, num_key_groups: int, eps: float,
) -> Any:  # fmt: skip
    """:func:`ilmconvert.nn.inference.infer`, line by line."""
    from onnxscript import opset18 as op

    finest = lcm(num_groups, num_key_groups)
    grouped = op.Reshape(_in_type_of(base, x), [0, finest, x.shape[1] // finest, -1])
    mean = op.ReduceMean(grouped, [2, 3], keepdims=1)
    centred = op.Sub(grouped, mean)
    var = op.ReduceMean(op.Mul(centred, centred), [2, 3], keepdims=1)
    from_group = None if deviate is None else op.Conv(mean, deviate, group=num_groups)
    square = None if from_group is None else op.Mul(from_group, from_group)
    fourfold = gates = None
    if mix is not None:
        if deviate_key is not None:
            from_key = op.Conv(mean, deviate_key, group=num_key_groups)
            square = op.Mul(from_key, from_key)
        features = op.Concat(var, mean, *([] if square is None else [square]), axis=1)
        mixed = op.Relu(op.Conv(features, mix, *([] if mix_bias is None else [mix_bias])))
        if mix_bias is not None:
            # The exporter makes a Split of it, which takes no unequal sizes here.
            parts = op.SplitToSequence(mixed, [finest, mix.shape[0] - finest], axis=1)
            fourfold, mixed = op.SequenceAt(parts, 0), op.SequenceAt(parts, 1)
        gates = op.Tanh(op.Conv(mixed, decode))
    if fourfold is None and pool is not None and from_group is not None:
        fourfold = op.Conv(op.Add(var, op.Mul(from_group, from_group)), pool, pool_bias, group=num_groups)
    elif fourfold is None:
        fourfold = op.Add(op.Mul(var, _number(4.0, base)), _number(4 * eps, base))
    omega, shift = (
        op.Split(base, axis=0, num_outputs=2) if gates is None else op.Split(op.Add(gates, base), axis=1, num_outputs=2)
    )
    scale = op.Div(omega, op.Sqrt(fourfold))
    scale = scale if gain is None else op.Add(scale, gain)
    if from_group is None:
        shift = shift if bias_gain is None else op.Add(shift, op.Mul(mean, bias_gain))
        y = op.Add(op.Mul(centred, scale), shift)
    else:
        of_mean = op.Neg(scale) if bias_gain is None else op.Sub(bias_gain, scale)
        y = op.Add(op.Mul(grouped, scale), op.Add(shift, op.Mul(op.Sub(mean, from_group), of_mean)))
    fixed = all(isinstance(n, int) for n in x.shape[1:])
    return _in_type_of(x, op.Reshape(y, [-1, *x.shape[1:]] if fixed else op.Shape(x)))


def _number(value: float, like: Any) -> Any:
    import numpy as np
    from onnxscript import ir
    from onnxscript import opset18 as op

    return op.Constant(value=ir.tensor(np.array(value, like.dtype.numpy())))


def _in_type_of(like: Any, value: Any) -> Any:
    from onnxscript import opset18 as op

    return value if value.dtype == like.dtype else op.CastLike(value, like)
