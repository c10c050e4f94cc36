"""What a training step through one layer keeps for its backward, and how far memory grows.

``python -m benchmarks.layer --only memory`` prints the table. This module itself runs one step in a process of its own:
``python -m benchmarks.layer_memory NAME SHAPE FORMAT TYPE`` prints the bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.layer_cases import DTYPES, GROUP, ILM, Shape, cases, layers, make_input, training
from benchmarks.report import Table, bounded

MEMORY_BOUND = 1.05


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that one training forward keeps for its backward, each storage once; parameters don't count."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x.detach().requires_grad_())
    del y
    return sum(kept.values())


def peak_bytes(name: str, shape: Shape, memory_format: str, dtype: str, device: str) -> int:
    """Peak memory that a training step adds: the allocator's on CUDA, resident memory of a new process elsewhere."""
    if not device.startswith("cuda"):
        command = [sys.executable, "-m", "benchmarks.layer_memory", name, "x".join(map(str, shape)), memory_format]
        done = subprocess.run([*command, dtype], capture_output=True, text=True, check=True)
        return int(done.stdout)
    step = training_step(name, shape, memory_format, dtype, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return int(torch.cuda.max_memory_allocated(device) - before)


def training_step(name: str, shape: Shape, memory_format: str, dtype: str, device: str) -> Callable[[], Tensor]:
    layer = layers(shape[1], memory_format, False)[name].to(device, DTYPES[dtype])
    x, grad = (make_input(shape, memory_format, dtype, device) for _ in range(2))
    return training(layer, x, grad)


def print_peak(name: str, shape: str, memory_format: str, dtype: str) -> None:
    """The growth of the largest resident memory over one step, after a small step that loads the libraries."""
    training_step(name, (2, 64, 8, 8), memory_format, dtype, "cpu")()
    step = training_step(name, tuple(int(n) for n in shape.split("x")), memory_format, dtype, "cpu")
    before = largest_resident()
    step()
    print(largest_resident() - before)


def largest_resident() -> int:
    """Bytes of this process at its largest."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage starts from what the parent process had
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(shapes: tuple[Shape, ...], dtypes: list[str], device: str) -> Table:
    table = Table("Memory of a training step, MB")
    for _, shape, name, dtype in cases(shapes, dtypes):
        x = make_input(shape, name, dtype, device)
        modules = {k: m.to(device, DTYPES[dtype]) for k, m in layers(shape[1], name, False).items()}
        saved = {k: saved_bytes(modules[k], x) / 2**20 for k in (ILM, GROUP)}
        peak = {k: peak_bytes(k, shape, name, dtype, device) / 2**20 for k in (ILM, GROUP)}
        ratio = saved[ILM] / saved[GROUP]
        table.rows.append(
            {
                "shape": str(shape),
                "format": name,
                "type": dtype,
                "saved": saved[ILM],
                "saved, GroupNorm": saved[GROUP],
                "ratio": ratio,
                "peak": peak[ILM],
                "peak, GroupNorm": peak[GROUP],
                **bounded(ratio, MEMORY_BOUND),
            }
        )
    return table


if __name__ == "__main__":
    print_peak(*sys.argv[1:])
