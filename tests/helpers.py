"""What several test modules share: telling statistics for norms, one error measure, tolerances."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ilmconvert.evaluation.tolerances import ROUNDING
from ilmconvert.testing import randomize_norms

__all__ = [
    "CHROMIUM",
    "ROOT",
    "TOLERANCE",
    "randomize_norms",
    "relative_error",
    "save_trained",
    "source_network",
    "write_fashion_mnist",
]

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# Largest allowed relative_error between a source and its conversion, by the type that both compute in. The tests' small
# networks are held to more than the package's own table asks of deep ones.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: ROUNDING[torch.float64] / 100,
    torch.float32: ROUNDING[torch.float32],
    torch.float16: ROUNDING[torch.float16] / 4,
    torch.bfloat16: ROUNDING[torch.bfloat16] / 2.5,
}


def relative_error(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> float:
    """Largest absolute difference over the largest absolute value of ``b``; of sequences, the worst.

    Not the package's own measure (:mod:`ilmconvert.surgery.difference`), which would hide its faults from the tests
    that compare with it. NaN and inf on either side count as an infinite error, so that a comparison with a tolerance
    fails. Different shapes raise an AssertionError.

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


def source_network(name: str = "test_resnet", *, scale: float = 1.0, **args: Any) -> nn.Module:
    """A model of timm in evaluation mode, the same each time, whose norms tell a right conversion from a wrong one."""
    torch.manual_seed(0)
    model: nn.Module = randomize_norms(timm.create_model(name, **args).eval(), scale=scale)
    return model


def save_trained(folder: Path, *, scale: float = 1.0) -> Path:
    """Weights of timm's test_resnet with telling norms, as ``folder``/trained.safetensors."""
    model = source_network(scale=scale)
    path = folder / "trained.safetensors"
    save_file(model.state_dict(), path)
    return path


def write_fashion_mnist(root: Path) -> Path:
    """Sixty training images and twelve test images of noise, as torchvision reads Fashion-MNIST; returns ``root``."""
    rng = np.random.default_rng(0)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 12)):
        _write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        _write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return root


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
