"""A pretend accelerator, for machines without one: what mixes its tensors with the CPU's fails as it does on a GPU.

Its tensors have real values, which lie in the CPU's memory, but report :data:`DEVICE`. An operation that is given such
a tensor and one of the CPU raises the error that torch raises for a GPU. What a GPU allows is allowed: copies between
devices, numbers without dimensions beside a tensor, indices on the CPU.

It can't tell what depends on CUDA itself: ``is_cuda``, kernels of its own, streams, CUDA's autocast, what it can't do.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Torch has no device of this type in use, but treats it as one: it has streams and needs no driver, unlike "cuda".
DEVICE = torch.device("lazy", 0)

_aten = torch.ops.aten
_COPIES = frozenset({_aten.copy_, _aten._foreach_copy_, _aten.set_})
# Indices may be on the CPU; of these, values without dimensions may be so, too.
_BY_INDEX = frozenset({_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_})


class PretendTensor(Tensor):
    """A tensor on :data:`DEVICE`, around the CPU's tensor that holds its values."""

    __slots__ = ("held",)  # not in ``vars``, which the library takes over from one tensor to another
    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        assert self.is_leaf, "only leaves of the graph can be copied"
        made = memo[id(self)] = PretendTensor(self.held.clone()).requires_grad_(self.requires_grad)
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __repr__(self) -> str:
        return f"{self.held!r} on {DEVICE}"

    def __format__(self, how: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), how)

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


def moved(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on :data:`DEVICE`, with the ties that ``Module.to`` would keep on a GPU alone."""
    memo: dict[int, Any] = {}
    for _, t in (*model.named_parameters(), *model.named_buffers()):
        there = PretendTensor(t.detach().clone())
        memo[id(t)] = nn.Parameter(there, t.requires_grad) if isinstance(t, nn.Parameter) else there
    return copy.deepcopy(model, memo)


class pretend_device(TorchDispatchMode):
    """Within it, ``device=DEVICE``, ``.to(DEVICE)`` and random generators work as on an accelerator.

    >>> with pretend_device():
    ...     x = torch.ones(2, device=DEVICE)
    ...     torch.ones(2) * x
    Traceback (most recent call last):
    RuntimeError: Expected all tensors to be on the same device, but found at least two devices, lazy:0 and cpu!
    """

    def __enter__(self) -> Any:
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) asks the mode, too
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, PretendTensor) for t in given)
    if here:
        _check(func, args, given)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": "cpu"} if here else kwargs
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu'")
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, PretendTensor) else t, (args, kwargs))
    result = func(*args, **kwargs)
    return tree_map(lambda t: PretendTensor(t) if isinstance(t, Tensor) else t, result) if here else result


def _check(func: Any, args: Any, given: list[Tensor]) -> None:
    packet = func.overloadpacket
    if packet in _COPIES:
        return
    if packet in _BY_INDEX:
        given = [args[0], *args[2:3]]
    others = [t for t in given if not isinstance(t, PretendTensor) and t.device.type == "cpu"]
    if any(t.dim() for t in others) or (others and packet in (_aten.cat, _aten.stack)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu!"
        )
