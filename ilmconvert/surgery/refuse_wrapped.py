"""Models that can't be operated on as they are: wrapped, compiled, scripted, parametrised. Each with its cure."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from ilmconvert.errors import ConversionError

_BY_CLASS_NAME = {
    "DistributedDataParallel": "convert model.module, then wrap the result",
    "DataParallel": "convert model.module, then wrap the result",
    "FullyShardedDataParallel": "convert the model before wrapping it",
    "FSDPModule": "convert the model before fully_shard",
    "OptimizedModule": "convert model._orig_mod, then call torch.compile on the result",
    "ScriptModule": "convert the model before torch.jit.trace (an ILM Norm can be traced, not scripted)",
}


def refuse_other(model: object) -> None:
    """Raise a ConversionError for what is no module, such as a model's name."""
    if isinstance(model, str):
        call = f"ilmconvert.models.create.create_model({model!r})"
        raise ConversionError(f"{model!r} is a name, and a torch.nn.Module is needed: {call} builds one")
    if not isinstance(model, nn.Module):
        raise ConversionError(f"a torch.nn.Module is needed, not an object of type {type(model).__name__}")


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a ConversionError if ``model`` or a part of it is wrapped, compiled or scripted, or is no module."""
    refuse_other(model)
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        wrapper = _wrapper(tuple((base.__module__, base.__name__) for base in type(module).__mro__))
        if wrapper is not None:
            raise ConversionError(f"{where} is a {wrapper}: {_BY_CLASS_NAME[wrapper]}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ConversionError(f"{where} was compiled in place: convert it before calling .compile()")


@cache  # every module of a model is asked
def _wrapper(bases: tuple[tuple[str, str], ...]) -> str | None:
    names = [name for module, name in bases if module.split(".")[0] == "torch"]
    return next((name for name in names if name in _BY_CLASS_NAME), None)


def parametrized_error(module: nn.Module) -> str | None:
    """Why a norm whose parameters are computed by something else can't be replaced, or None."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrised; call torch.nn.utils.parametrize.remove_parametrizations on it first"
    if {"weight_g", "weight_orig"} & set(module._parameters):
        return "weight_norm, spectral_norm or pruning computes its weight; remove that first"
    return None
