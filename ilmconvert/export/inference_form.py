"""The form in which models leave for other runtimes: folded, and what of a layer stays computed in few operations."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from ilmconvert.export.fold import WithoutMeta, fold
from ilmconvert.export.onnx_norm import inference_norm
from ilmconvert.nn import ILMNorm, ILMNormAct
from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.autocast import no_autocast
from ilmconvert.nn.inference import InferenceConstants, infer, inference_constants, suits


def inference_form(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for exporters: :func:`ilmconvert.export.fold.fold`, and then constants for parameters.

    An ILM Norm with a trained meta-network or rescaling becomes a module that holds what
    :func:`ilmconvert.nn.inference.infer` needs, so that nothing is computed that doesn't depend on the input. Layers
    with a bound or a range on the restoring path, or with unbiased variances, stay. Same function up to rounding. In
    eager mode the layers themselves are faster.

    >>> layer = ILMNorm(32, 8, restore=True)
    >>> _ = nn.init.normal_(layer.weight_decoder)
    >>> inference_form(nn.Sequential(layer))
    Sequential(
      (0): InferenceNorm()
    )
    """
    folded = fold(model)
    memo: dict[int, object] = {}
    like = next(chain(folded.parameters(), folded.buffers()), None)
    for layer in folded.modules():
        if isinstance(layer, (ILMNorm, WithoutMeta)) and suits(*_arguments(layer)):
            norm = InferenceNorm(layer, like)
            fused = (layer.drop, layer.act) if isinstance(layer, ILMNormAct) else ()
            memo[id(layer)] = nn.Sequential(norm, *fused) if fused else norm
    return copy.deepcopy(folded, memo).eval()


class InferenceNorm(nn.Module):
    """What :func:`ilmconvert.nn.inference.infer` needs of a layer.

    Args:
        like: has the data type and the device of a layer without tensors of its own; None: float32 on the CPU.

    Attributes:
        as_one: be a single operation, :func:`ilmconvert.export.onnx_norm.inference_norm`, for the exporter to ONNX.
    """

    as_one = False

    @torch.no_grad()
    def __init__(self, layer: ILMNorm | WithoutMeta, like: Tensor | None = None) -> None:
        super().__init__()
        self.settings, tensors = _arguments(layer)
        self.input_dims = layer.input_dims
        own = next((t for t in (*tensors, like) if t is not None), torch.empty(0))
        dtype = torch.float64 if own.dtype == torch.float64 else torch.float32
        constants = inference_constants(tensors, self.settings, layer.num_channels, dtype, own.device)
        for name, value in constants._asdict().items():
            # torch.export of torch 2.14 stumbles over buffers that are None.
            if value is None:
                setattr(self, name, None)
            else:
                self.register_buffer(name, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        single = self.input_dims is not None and x.dim() == self.input_dims - 1
        x = x.unsqueeze(0) if single else x
        constants = InferenceConstants(*(getattr(self, name) for name in InferenceConstants._fields))
        s = self.settings
        with no_autocast(x.device.type):
            if self.as_one:
                y: Tensor = inference_norm(x, *constants, s.num_groups, s.num_key_groups, s.eps)
            else:
                y = infer(x, constants, s)
        return y.squeeze(0) if single else y


def _arguments(layer: ILMNorm | WithoutMeta) -> tuple[Settings, Tensors]:
    tensors = Tensors(*(getattr(layer, name, None) for name in Tensors._fields))
    key_groups = 1 if tensors.encoder is None else tensors.encoder.shape[1]
    restoring = layer.restore_bound, layer.restore_range
    return Settings(layer.num_groups, key_groups, layer.eps, layer.correction, *restoring), tensors
