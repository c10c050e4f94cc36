"""The layer where training puts it: checkpointed, distributed, compiled, and under per-sample gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from opacus.grad_sample import GradSampleModule
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from tests.nn.training_jobs import gradients, network, train_half


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    model = network()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    plain, grad_x = gradients(model), x.grad.clone()
    x.grad = None
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    assert_same(gradients(model), plain)
    torch.testing.assert_close(x.grad, grad_x)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # no input asks for gradients
def test_per_sample_gradients_as_opacus_takes_them() -> None:
    model = network()
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    expected = []
    for sample in x:
        model(sample[None]).square().sum().backward()
        expected.append(gradients(model))
    wrapped = GradSampleModule(model, loss_reduction="sum")
    wrapped(x).square().sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad_sample, torch.stack([e[name] for e in expected]), rtol=1e-8, atol=1e-8)


def test_compiled_once_for_training_once_for_inference() -> None:
    model = network()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for size in (9, 12, 15):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        compiled(x).square().sum().backward()
        got = gradients(model)
        model(x).square().sum().backward()
        assert_same(got, gradients(model))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 2


@pytest.mark.slow  # a run by two processes, which tests/finetune compares with one, takes these gradients
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    model = network()
    (model(x).square().sum() / 2).backward()  # DDP averages over processes
    mp.spawn(train_half, (str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_same(halves[0], halves[1])
    assert_same(halves[0], gradients(model))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cuda_computes_what_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the convolutions' ten bits of mantissa
    model = network().float()
    x = torch.randn(2, 3, 17, 17).contiguous(memory_format=memory_format)
    model(x).square().mean().backward()
    expected, on_cpu = model(x), gradients(model)
    model.cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        y = model(x.cuda())
        y.float().square().mean().backward()
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    assert (y.float().cpu() - expected).abs().max() <= tolerance * expected.abs().max()
    for name, grad in gradients(model).items():
        assert (grad.cpu() - on_cpu[name]).norm() <= 10 * tolerance * on_cpu[name].norm().clamp(min=1e-3), name
