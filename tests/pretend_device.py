"""A pretend accelerator, for machines without one: what mixes its tensors with the CPU's fails as it does on a GPU.

Its tensors have real values, which lie in the CPU's memory, but report :data:`DEVICE`. An operation that is given such
a tensor and one of the CPU raises the error that torch raises for a GPU. What a GPU allows is allowed: copies between
devices, numbers without dimensions beside a tensor, indices on the CPU.

It can't tell what depends on CUDA itself: ``is_cuda`` and what is behind it (kernels, graphs, streams), autocast, types
that a device lacks. Torch doesn't pickle, export or compile its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ilmconvert import ILMNorm
from ilmconvert.testing import randomize_norms

#: Of a type that nobody uses. "cuda" asks for a driver, other types for a library; this one is a device all the same.
DEVICE = torch.device("lazy", 0)

_aten = torch.ops.aten
_COPIES = frozenset({_aten.copy_, _aten._foreach_copy_, _aten.set_})
_BY_INDEX = frozenset({_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_})


#: Types that the pretend accelerator refuses; see :func:`without_float64`.
_lacking: frozenset[torch.dtype] = frozenset()


class PretendTensor(Tensor):
    """A tensor on :data:`DEVICE`, around the CPU's tensor that holds its values."""

    __slots__ = ("held",)  # not in ``vars``, which the library takes over from one parameter to another
    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        if held.dtype in _lacking:
            raise TypeError(
                f"Cannot convert a {DEVICE.type} Tensor to {held.dtype}, which {DEVICE.type} doesn't support"
            )
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        assert self.is_leaf, "only leaves of the graph can be copied"
        made = memo[id(self)] = PretendTensor(self.held.clone()).requires_grad_(self.requires_grad)
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __repr__(self) -> str:
        return f"{self.held!r} on {DEVICE}"

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    __array__ = numpy

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: PretendTensor) -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held


@contextmanager
def without_float64() -> Iterator[None]:
    """Within it the pretend accelerator is like Apple's, which refuses tensors of float64."""
    global _lacking
    _lacking = frozenset({torch.float64, torch.complex128})
    try:
        yield
    finally:
        _lacking = frozenset()


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within it, ``device=DEVICE`` and ``.to(DEVICE)`` give tensors of the pretend accelerator, in every thread.

    >>> with pretend_device() as device:
    ...     torch.ones(2) * torch.ones(2, device=device)
    Traceback (most recent call last):
    RuntimeError: Expected all tensors to be on the same device, but found at least two devices, lazy:0 and cpu!
    """
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, DEVICE.type.capitalize())
    before, wait = torch._C._only_lift_cpu_tensors(), torch.accelerator.synchronize
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) comes here, too
    torch.accelerator.synchronize = lambda device=None: None
    try:
        yield DEVICE
    finally:
        torch.accelerator.synchronize = wait
        torch._C._set_only_lift_cpu_tensors(before)
        library._destroy()


def moved(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on :data:`DEVICE`; what is tied stays so, which ``Module.to`` can do on a GPU alone."""
    memo: dict[int, Any] = {}
    for _, t in (*model.named_parameters(), *model.named_buffers()):
        there = PretendTensor(t.detach().clone())
        memo[id(t)] = nn.Parameter(there, t.requires_grad) if isinstance(t, nn.Parameter) else there
    return copy.deepcopy(model, memo)


def small_network(seed: int = 0) -> nn.Sequential:
    """Few layers, since the pretend device is slow; for images (N, 3, H, W), with norms that tell."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32))
    head = (nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    return randomize_norms(nn.Sequential(*layers, *head), seed).eval()


def awake(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """With meta-networks that do something."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ILMNorm):
                torch.nn.init.normal_(layer.weight_decoder, std=scale)
    return model


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward in training mode."""
    model.train()(x).sum().backward()
    assert all(p.grad is None or p.grad.device == p.device for p in model.parameters())


def same_there(found: nn.Module, expected: nn.Module) -> None:
    """Assert that ``found`` is on :data:`DEVICE`, and holds the values of ``expected``, to the last bit."""
    theirs = expected.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for name, t in found.state_dict().items():
        assert t.device == DEVICE, f"{name} is on {t.device}"
        assert torch.equal(t.cpu(), theirs[name]), name


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, PretendTensor) for t in given)
    if here:
        _check(func, args, given)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs["device"] = "cpu" if here else kwargs["device"]
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu'")
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, PretendTensor) else t, (args, kwargs))
    # Views of tensors that came to be outside of inference mode need others of that kind.
    with torch.inference_mode(False), torch.no_grad():
        result = func(*args, **kwargs)
        return tree_map(lambda t: PretendTensor(t) if isinstance(t, Tensor) else t, result) if here else result


def _check(func: Any, args: Any, given: list[Tensor]) -> None:
    packet = func.overloadpacket
    if packet in _COPIES:
        return
    if packet in _BY_INDEX:  # and by the CPU's indices
        given = [args[0], *args[2:3]]
    others = [t for t in given if t.device.type == "cpu"]
    if any(t.dim() for t in others) or (others and packet in (_aten.cat, _aten.stack)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu!"
        )
