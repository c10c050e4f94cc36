"""The Triton kernels without a GPU: interpreted against the composed formula, counted, and compiled for two."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from ilmconvert import ILMNorm
from ilmconvert.nn.kernels import triton_launch, triton_schedule
from tests.nn.triton_jobs import COMPILED, Case, build, compare, compile_all

HALF, BRAIN = torch.float16, torch.bfloat16
FORWARD, BACKWARD = 3, 5
CASES = {
    "contiguous": Case((2, 32, 5, 6), 8, 16),
    "channels_last": Case((2, 32, 5, 6), 8, 16, channels_last=True),
    "without restoring": Case((2, 32, 5, 6), 8, 16, restore=False),
    "bounded": Case((2, 24, 3, 3), 4, 6, bound=0.7),
    "unbiased": Case((2, 48, 6, 5), 6, 12, correction=1),
    "no meta-network": Case((2, 32, 5, 6), 8, 16, meta=False),
    "no weight and bias": Case((2, 32, 3, 3), 8, 16, affine=False, restore=False),
    "one group": Case((2, 40, 4, 4), 1, 8),
    "one group per channel": Case((2, 40, 4, 4), 40, 8),
    "groups across key groups": Case((2, 24, 5), 8, 4),
    "prime channels": Case((1, 19, 7), 19, 1),
    "one position": Case((3, 32, 1, 1), 8, 16),
    "no position": Case((3, 32), 8, 16),
    "one element": Case((1, 1, 1, 1), 1, 1),
    "volumes": Case((1, 8, 3, 4, 5), 2, 4),
    "several blocks of channels": Case((1, 80, 3, 3), 4, 16, channels_last=True),
    "several parts": Case((1, 4, 80, 80), 2, 2),
    "several parts, channels_last": Case((1, 4, 80, 80), 2, 2, channels_last=True),
    "far from zero": Case((1, 8, 40, 40), 2, 4, offset=2e3, restore=False),
    "float16": Case((2, 32, 5, 6), 8, 16, HALF),
    "bfloat16": Case((2, 32, 5, 6), 8, 16, BRAIN, channels_last=True),
    "relu": Case((2, 32, 5, 6), 8, 16, activation="relu"),
    "silu": Case((2, 32, 5, 6), 8, 16, activation="silu"),
    "hardswish": Case((2, 32, 5, 6), 8, 16, activation="hardswish"),
}
TOLERANCE = {torch.float32: 5e-6, HALF: 2e-3, BRAIN: 1.6e-2}
# What float32 holds of x is all there is: 2e3 / 2 * 6e-8, and one element is divided by sqrt(eps).
COARSE = {"far from zero": 2e-4, "one element": 1e-3}


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets."""
    with pytest.MonkeyPatch.context() as patch, _process() as pool:
        patch.setenv("TRITON_INTERPRET", "1")
        yield pool


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton compiles."""
    with pytest.MonkeyPatch.context() as patch, _process() as pool:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield pool


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_compute_the_formula(interpreter: ProcessPoolExecutor, name: str) -> None:
    case = CASES[name]
    found = interpreter.submit(compare, case).result()
    bound = COARSE.get(name, TOLERANCE[case.dtype])
    assert max(found["errors"].values()) < bound, found["errors"]
    assert found["launches"][0] == FORWARD
    assert found["launches"][1] == BACKWARD - (not case.meta) - (not case.affine)
    assert found["deterministic"]
    assert found["strides"]
    assert found["dtype"]
    assert found["kept"] <= 10  # tensors of (N, C) and less


# ptxas's registers and spills are in docs/speed.md; 255 is all there are.
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("case", COMPILED.values(), ids=COMPILED)
def test_kernels_compile_without_spills(compiler: ProcessPoolExecutor, arch: int, case: Case) -> None:
    found = compiler.submit(compile_all, case, arch).result()
    assert len(found) == FORWARD + BACKWARD
    assert all(spilt == 0 for _, spilt in found.values()), found


class _Kernel:
    """Stands for a kernel of Triton: finds a compiled one and starts it."""

    __name__ = "a_kernel"
    arg_names = ("x", "n", "BLOCK", "FLAG")

    def __init__(self) -> None:
        self.found: list[tuple[object, ...]] = []
        self.started: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., _Kernel]:
        def start(*args: object, **constants: object) -> _Kernel:
            (self.found if constants else self.started).append((grid, *args))
            return self

        return start


def test_a_kernel_is_looked_for_once_under_a_schedule() -> None:
    """What Triton compiles for is what the schedule is kept by, but for tensors that lie at odd addresses."""
    x, tensors, settings = build(Case((2, 32, 5, 6), 8, 16))
    schedule = triton_schedule.schedule_of(x, tensors, settings, "none")
    assert schedule.ready is None  # not on a GPU
    kernel = _Kernel()
    for ready in (None, {}):
        for _ in range(3):
            triton_launch.launch(schedule._replace(ready=ready), kernel, (4, 2), x, 7, BLOCK=16, FLAG=True, num_warps=4)
    assert [grid for grid, *_ in kernel.found] == [(4, 2)] * 4
    assert kernel.started == [((4, 2, 1), x, 7, 16, True)] * 2
    aligned = triton_schedule.compiled_for(tensors)
    assert aligned is not None
    assert aligned != triton_schedule.compiled_for(tensors.to(torch.float16))
    assert aligned != triton_schedule.compiled_for(tensors._replace(weight=None))
    assert triton_schedule.compiled_for((x, torch.randn(9)[1:])) is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_as_interpreted(name: str) -> None:
    case = CASES[name]
    found = compare(case, "cuda")
    assert max(found["errors"].values()) < COARSE.get(name, TOLERANCE[case.dtype]), found["errors"]
    assert found["deterministic"]
    assert found["strides"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_no_synchronisation_and_cuda_graphs() -> None:
    layer = ILMNorm(64, 32, restore=True).cuda()
    x = torch.randn(2, 64, 14, 14, device="cuda")
    expected = layer(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x.clone().requires_grad_()).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    torch.testing.assert_close(y, expected)
