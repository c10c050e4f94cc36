"""What the tests of the Triton kernels ask of a process of its own, where Triton interprets or compiles.

``python -m tests.nn.triton_jobs`` prints the registers of each kernel, compiled for two generations of GPUs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilmconvert import ILMNorm
from ilmconvert.nn.arguments import Settings, Tensors
from ilmconvert.nn.composed import composed
from ilmconvert.nn.fused import ACTIVATIONS
from ilmconvert.nn.kernels import triton_launch


class Case(NamedTuple):
    """A layer and its input."""

    shape: tuple[int, ...]
    groups: int
    key_group_size: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    restore: bool = True
    bound: float | None = None
    correction: int = 0
    affine: bool = True
    offset: float = 1.0
    activation: str = "none"
    meta: bool = True


COMPILED = {
    "deep": Case((8, 2048, 7, 7), 32, 16),
    "wide": Case((2, 64, 112, 112), 1, 16, torch.bfloat16, channels_last=True, activation="silu"),
    "half": Case((2, 512, 14, 14), 512, 16, torch.float16, bound=2.0, activation="hardswish"),
    "one element": Case((1, 1, 1, 1), 1, 1),  # sizes of one are compiled in
}


def build(case: Case) -> tuple[Tensor, Tensors, Settings]:
    """Random input and tensors, all of which do something."""
    generator = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    layer = ILMNorm(
        channels,
        case.groups,
        key_group_size=case.key_group_size,
        correction=case.correction,
        restore=case.restore,
        restore_bound=case.bound,
        affine=case.affine,
    )
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=generator)
        layer.encoder.abs_().div_(channels)
        if layer.ref_mean is not None and layer.ref_std is not None:
            layer.ref_mean.normal_(generator=generator)
            layer.ref_std.uniform_(0.5, 2, generator=generator)
    values = {name: getattr(layer, name) for name in Tensors._fields}
    if not case.meta:
        values |= dict.fromkeys(("encoder", "weight_decoder", "bias_decoder"))
    key_groups = channels // case.key_group_size if case.meta else 1
    x = torch.randn(case.shape, generator=generator) * 2 + case.offset
    x = x.to(case.dtype)
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    tensors = Tensors(*(None if t is None else t.detach() for t in values.values()))
    return x, tensors, Settings(case.groups, key_groups, layer.eps, case.correction, case.bound)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of the kernels that are launched meanwhile."""
    names: list[str] = []
    plain = triton_launch.launch

    def launch(schedule: Any, kernel: Any, *args: Any, **constants: Any) -> None:
        names.append(kernel.__name__)
        plain(schedule, kernel, *args, **constants)

    triton_launch.launch = launch
    try:
        yield names
    finally:
        triton_launch.launch = plain


def compare(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Errors of the kernels, on a CPU interpreted, against the formula in float64, relative to the largest value."""
    x, t, s = build(case)
    x, t = x.to(device), Tensors(*(None if p is None else p.to(device) for p in t))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    needs = [True] * 8 + [False] * 2
    with counted() as names:
        triton_launch.forward(x, t, s, case.activation)
        forward = len(names)
        y, saved = triton_launch.forward(x, t, s, case.activation)
        got = triton_launch.backward(grad, x, t, s, saved, needs, case.activation)
        again = triton_launch.backward(grad, x, t, s, saved, needs, case.activation)
    exact = [None if p is None else p.double().requires_grad_() for p in (x, *t)]
    wanted = ACTIVATIONS[case.activation](composed(exact[0], Tensors(*exact[1:]), s))
    inputs = [p for p in exact if p is not None]
    found = iter(torch.autograd.grad(wanted, inputs, grad.double(), allow_unused=True))
    expected = [None if p is None else next(found) for p in exact]
    errors = {"y": _error(y, wanted)}
    for name, a, b in zip(("x", *Tensors._fields[:7]), got[:8], expected[:8], strict=True):
        if a is not None:
            errors[name] = _error(a, b)
    same = all(a is None or torch.equal(a, b) for a, b in zip(got, again, strict=True))
    return {
        "errors": errors,
        "launches": (forward, (len(names) - 2 * forward) // 2),
        "deterministic": same,
        "strides": y.stride() == x.stride() and got[0].stride() == x.stride(),
        "dtype": y.dtype == x.dtype,
        "kept": saved.numel() / (x.shape[0] * x.shape[1]),
    }


def _error(got: Tensor, wanted: Tensor) -> float:
    scale = wanted.abs().max().item()
    return (got.double() - wanted).abs().max().item() / (scale or 1.0)


class _Target:
    """A driver without a device."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        return self._arch  # kernels are kept for each device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)


def compile_all(case: Case, arch: int) -> dict[str, tuple[int, int]]:
    """Registers and bytes spilt of each kernel of a forward and a backward pass, compiled for sm_``arch``."""
    from triton.runtime import driver

    driver.set_active(_Target(arch))
    found: dict[str, tuple[int, int]] = {}

    def launch(_: Any, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        found[kernel.__name__] = _assembled(kernel.warmup(*args, grid=grid, **constants).asm["ptx"])

    triton_launch.launch = launch
    x, t, s = build(case)
    _, saved = triton_launch.forward(x, t, s, case.activation)
    triton_launch.backward(x, x, t, s, saved, [True] * 8 + [False] * 2, case.activation)
    return found


def _assembled(ptx: str) -> tuple[int, int]:
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(ptxas), "-v", f"--gpu-name={target[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    assert registers is not None
    assert spills is not None
    return int(registers[1]), int(spills[1])


def main() -> None:
    print("| kernel | registers, sm_80 | registers, sm_90 |\n|---|---|---|")
    found = {arch: [compile_all(COMPILED[name], arch) for name in ("deep", "wide", "half")] for arch in (80, 90)}
    assert not any(spilt for cases in found.values() for case in cases for _, spilt in case.values())
    for kernel in found[80][0]:
        cells = (", ".join(str(case[kernel][0]) for case in cases) for cases in found.values())
        print(f"| {kernel} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
