"""Layers of the authors' code: their state dicts in our parametrisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ENCODER = "fc_embed.0.weight"
_ALIASES = ("fc_weight.0.0.weight", "fc_bias.0.0.weight")
_WEIGHT_DECODER = "fc_weight.1.weight"
_BIAS_DECODER = "fc_bias.1.weight"
_REQUIRED = (_ENCODER, _WEIGHT_DECODER, _BIAS_DECODER, "weight_bias", "bias_bias")


@torch.no_grad()
def read_authors_layer(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and tensors of an :class:`~ilmconvert.nn.ILMNorm` that computes what the authors' layer computes.

    Their ``omega = weight_bias + sigmoid(.)`` is ours with ``weight = weight_bias + 1/2``; both their variances are
    unbiased (``correction=1``). The encoder stands under three names there, which must agree. The authors' three
    copies of the class don't agree on the width, so the shapes in the file decide.

    Raises:
        ValueError: keys or shapes aren't those of one such layer.
    """
    _check_keys(state_dict)
    encoder = state_dict[_ENCODER]
    width, key_groups = encoder.shape
    num_channels = state_dict["weight_bias"].numel()
    for key in (_WEIGHT_DECODER, _BIAS_DECODER):
        if state_dict[key].shape != (key_groups, width):
            raise ValueError(f"{key} is {tuple(state_dict[key].shape)}, expected {(key_groups, width)}")
    if num_channels % key_groups or state_dict["bias_bias"].numel() != num_channels:
        raise ValueError(f"weight_bias and bias_bias must hold the same multiple of {key_groups} channels")
    arguments = {
        "num_channels": num_channels,
        "key_group_size": num_channels // key_groups,
        "reduction": max(1, key_groups // width),
        "correction": 1,
        "device": encoder.device,
        "dtype": encoder.dtype,
    }
    tensors = {
        "encoder": encoder.clone(),
        "weight_decoder": state_dict[_WEIGHT_DECODER].clone(),
        "bias_decoder": state_dict[_BIAS_DECODER].clone(),
        "weight": state_dict["weight_bias"].flatten() + 0.5,
        "bias": state_dict["bias_bias"].flatten().clone(),
    }
    return arguments, tensors


def _check_keys(state_dict: Mapping[str, Tensor]) -> None:
    missing = [key for key in _REQUIRED if key not in state_dict]
    unknown = sorted(set(state_dict) - {*_REQUIRED, *_ALIASES})
    if missing or unknown:
        raise ValueError(f"not one layer of the authors' code: missing {missing}, unknown {unknown}")
    for key in _ALIASES:
        if key in state_dict and not torch.equal(state_dict[key], state_dict[_ENCODER]):
            raise ValueError(f"{key} differs from {_ENCODER}, but the layer has one shared encoder")
