"""A plan carried out: every layer in its place, or the model as it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.new_layers import new_layer
from ilmconvert.surgery.plan import Plan
from ilmconvert.surgery.replacement import copy_with, replaced
from ilmconvert.surgery.sources import describe_norm


def carry_out(
    the_plan: Plan, model: nn.Module, *, inplace: bool, check: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """``model`` with the planned layers: itself, or a copy.

    Args:
        the_plan: one of this very model, without errors.
        model: isn't changed unless ``inplace``.
        inplace: whether to change it.
        check: called with the result; if it raises, the model is as it was.

    Raises:
        ConversionError: values that the model's dtype can't hold, or a place that can't be written.
    """
    entries = {entry.name: (seed, entry) for seed, entry in enumerate(the_plan.converted)}
    old = {name: the_plan.modules[name] for name in entries}
    names = {id(module): name for name, module in old.items()}
    fallback = _fallback(model)

    def make(module: nn.Module, own: nn.Module) -> nn.Module:
        """The layer for ``module`` of the model, made of the parts of ``own``: itself or its copy."""
        seed, entry = entries[names[id(module)]]
        source = describe_norm(own)
        assert source is not None
        assert entry.target is not None
        try:
            return new_layer(own, source, entry.target, fallback=fallback, seed=seed)
        except ConversionError as e:
            raise ConversionError(f"can't convert {entry.name or 'the root'}: {e}") from None

    if inplace:
        with replaced(model, {module: make(module, module) for module in old.values()}) as root:
            if check is not None:
                check(root)
            return root
    result = copy_with(model, old, make)
    if check is not None:
        check(result)
    return result


def _fallback(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for a layer in place of one that has no tensor at all."""
    for t in model.parameters():
        if t.is_floating_point():
            return t.device, t.dtype
    return torch.get_default_device(), torch.get_default_dtype()
