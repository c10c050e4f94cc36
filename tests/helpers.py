"""What several test modules share: telling statistics for norms, one error measure, tolerances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Largest allowed relative_error between a source and its conversion, by the type that both compute in.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random affine parameters and running statistics for every norm of torch, timm, torchvision.

    A freshly built network (gamma 1, beta 0, mean 0, variance 1, often gamma 0 in the last norm of a residual
    branch) would let a wrong conversion pass. Variances lie in [0.3, 3], means and biases in [-1, 1], |gamma|
    in [0.3, 2] with random signs; ``num_batches_tracked`` becomes 1000. The same seed gives the same model;
    returns ``model``, changed in place.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    kinds = _norm_types()
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, kinds):
                continue
            tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            if (weight := tensors.get("weight")) is not None:
                weight.copy_(uniform(weight, 0.3, 2.0) * uniform(weight, -1.0, 1.0).sign())
            if (variance := tensors.get("running_var")) is not None:
                variance.copy_(uniform(variance, 0.3, 3.0))
            for name in ("bias", "running_mean"):
                if (tensor := tensors.get(name)) is not None:
                    tensor.copy_(uniform(tensor, -1.0, 1.0))
            if (count := tensors.get("num_batches_tracked")) is not None:
                count.fill_(1000)
    return model


def relative_error(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> float:
    """Largest absolute difference over the largest absolute value of ``b``; of sequences, the worst.

    NaN and inf on either side count as an infinite error, so that a comparison with a tolerance fails.
    Different shapes raise an AssertionError.

    >>> relative_error(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0]))
    0.25
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        assert isinstance(a, Tensor) == isinstance(b, Tensor), "a tensor against a sequence"
        assert len(a) == len(b), f"{len(a)} tensors against {len(b)}"
        return max((relative_error(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    assert a.shape == b.shape, f"shape {tuple(a.shape)} against {tuple(b.shape)}"
    if a.numel() == 0:
        return 0.0
    x, y = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    if not (x.isfinite().all() and y.isfinite().all()):
        return float("inf")
    error, scale = (x - y).abs().max().item(), y.abs().max().item()
    return 0.0 if error == 0 else error / scale if scale else float("inf")


def _norm_types() -> tuple[type[nn.Module], ...]:
    from timm.layers import FrozenBatchNormAct2d, RmsNorm
    from torchvision.ops import FrozenBatchNorm2d

    # The base of every BatchNorm and InstanceNorm, also of the synchronised and fused ones.
    shared = nn.modules.batchnorm._NormBase
    return (shared, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RmsNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
