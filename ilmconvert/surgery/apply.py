"""The operation itself: all planned replacements, or none."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.initialization import beyond
from ilmconvert.surgery.left_behind import warn_left_behind
from ilmconvert.surgery.plan import Plan, norm_like, plan, seen
from ilmconvert.surgery.plan_entry import ALREADY_CONVERTED, PlanEntry
from ilmconvert.surgery.refuse_wrapped import refuse_other
from ilmconvert.surgery.settings import DEFAULT_NUM_GROUPS
from ilmconvert.surgery.source_state import SourceState, accept_source_state
from ilmconvert.surgery.sources import NormDescription, find_source

_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(plan).parameters.items()}


def convert(
    model: nn.Module,
    to: str | Plan = "ilm_gn",
    *,
    inplace: bool = False,
    init: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    num_groups: int = DEFAULT_NUM_GROUPS,
    key_group_size: int = 16,
    reduction: int = 16,
    restore_bound: float | None = None,
) -> nn.Module:
    """Replace the BatchNorm, GroupNorm and InstanceNorm layers of ``model`` by ILM Norm layers.

    With ``init="identity"`` the result computes what ``model.eval()`` computes, up to rounding, for every input:
    a restoring path around the paper's auto-encoder gives each instance its own statistics back. With
    ``init="moments"`` the result is the paper's layer alone, started from the running statistics; it computes
    something close, and needs fine-tuning. Fused activations, child order, device, dtype, training flags,
    ``requires_grad``, forward and backward hooks and shared modules are kept. Any failure leaves ``model`` as it was.
    Norms of other libraries and of your own are recognised by what they compute; see :func:`ilmconvert.plan`.

    An input that isn't finite is another matter: one pixel of NaN or infinity, or a fill value of 1e20, spoils its
    whole image through the statistics, where the source would lose the outputs around it. Replace such values before
    the network: ``x.nan_to_num(0, 0, 0).clamp(-10, 10)`` for standardised images.

    Args:
        model: a ``nn.Module`` with at least one norm layer; the root itself may be one.
        to: ``"ilm_gn"`` (``num_groups`` groups), ``"ilm_ln"`` (one group) or ``"ilm_in"`` (one group a channel).
            Under ``"ilm_gn"`` with the default ``num_groups`` a GroupNorm or InstanceNorm keeps its own groups.
            ``"gn"``, ``"ln"`` and ``"in"`` are the same groups as stock ``nn.GroupNorm`` (timm's ``GroupNormAct``
            where an activation was fused), started from the running statistics: close to the source, not equal.
            Or a :class:`ilmconvert.Plan` of this very model, which is then carried out without a second look; the
            settings are the plan's, and those below stay at their defaults.
        inplace: change ``model`` itself (if its root is a norm, the new layer is only returned). Otherwise the
            result is a deep copy that shares nothing with ``model``.
        init: ``"identity"`` or ``"moments"``. By default identity, for plain layers moments, their only start.
        include, exclude: fnmatch patterns on module names, one or several; exclude wins.
        num_groups: at most so many groups: the largest divisor of C up to it that leaves two channels a group.
        key_group_size: at most so many channels a key group: the largest divisor of C up to it.
        reduction: key groups per unit of the auto-encoder; see :class:`ilmconvert.ILMNorm`.
        restore_bound: tau of the restoring path's bound ``tau * tanh(z / tau)``. With a bound the result differs
            from ``model`` for instances whose statistics are far from the running statistics.

    Raises:
        ConversionError: nothing to convert, a layer that can't be converted as asked, a wrapped model, or a plan
            that was made for another model.
        ValueError: an argument is out of its range.

    Warns:
        UserWarning: a pattern matches nothing, a BatchNorm was never trained, or all is converted already.
        NormsLeftBehind: norm layers stay that have running statistics or an unknown formula.

    Source: Jia, Chen, Chen, CVPR 2019, for the layer; the restoring path is this library's.

    >>> source = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    >>> _ = source[1].running_mean.normal_()
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.allclose(convert(source)(x), source(x), atol=1e-5)
    True
    """
    asked: dict[str, Any] = {
        "init": init,
        "include": include,
        "exclude": exclude,
        "num_groups": num_groups,
        "key_group_size": key_group_size,
        "reduction": reduction,
        "restore_bound": restore_bound,
    }
    refuse_other(model)
    the_plan = _fitting(to, model, asked) if isinstance(to, Plan) else plan(model, to, **asked)
    _check(the_plan)
    found = noted(model)
    layers = {
        id(the_plan.modules[e.name]): _new_layer(the_plan.modules[e.name], e, _fallback(model), seed)
        for seed, e in enumerate(the_plan.converted)
    }
    sources = {id(m): m for m in the_plan.modules.values() if id(m) in layers}
    if inplace:
        for key, layer in layers.items():
            _adopt(layer, sources[key], memo=None)
        result = _replace_children(model, layers)
    else:
        result = _copy_with(model, layers, sources)
    if layers:
        note(result, found, settings={"to": the_plan.settings.to, "init": the_plan.settings.init})
    return result


def _fitting(the_plan: Plan, model: nn.Module, asked: Mapping[str, Any]) -> Plan:
    """The plan, if it is one of this model as it stands and nothing else was asked for."""
    other = sorted(name for name, value in asked.items() if value != _DEFAULTS[name])
    if other:
        raise ValueError(f"the plan holds the settings; give {', '.join(other)} to ilmconvert.plan instead")
    norms = dict(norm_like(model))
    for entry in the_plan:
        for name in (entry.name, *entry.aliases):
            if norms.pop(name, None) is not the_plan.modules[entry.name]:
                where = repr(name) if name else "the root"
                raise ConversionError(f"the plan isn't one of this model as it stands: {where} is another module there")
    if norms:
        raise ConversionError(f"the plan isn't one of this model as it stands: it lacks {next(iter(norms))!r}")
    return the_plan


def _check(the_plan: Plan) -> None:
    if the_plan.errors:
        first, rest = the_plan.errors[0], len(the_plan.errors) - 1
        more = f" (and {rest} more layers, see ilmconvert.plan)" if rest else ""
        source = first.source.rsplit(".", 1)[-1]
        raise ConversionError(f"can't convert {first.name or 'the root'} ({source}): {first.error}{more}")
    for pattern in the_plan.unmatched:
        warnings.warn(f"pattern {pattern!r} matches no norm layer", stacklevel=3)
    if not the_plan.converted:
        if any(e.reason == ALREADY_CONVERTED for e in the_plan):
            if "identity" not in the_plan.settings.target.starts:
                raise ConversionError(
                    "the norm layers are ILM Norms: convert their source, or use "
                    "ilmconvert.calibration.collapse.collapse"
                )
            warnings.warn("nothing to do: the norm layers of this model are ILM Norms already", stacklevel=3)
            return
        raise ConversionError(f"nothing to convert; the model holds: {seen(the_plan.skipped)}")
    untrained = [e.name for e in the_plan.converted if e.never_trained]
    if untrained:
        warnings.warn(
            f"{len(untrained)} BatchNorm layers were never trained (running statistics 0 and 1), first "
            f"{untrained[0]!r}: load weights before converting",
            stacklevel=3,
        )
    warn_left_behind(the_plan, stacklevel=3)


def _new_layer(module: nn.Module, entry: PlanEntry, fallback: tuple[torch.device, torch.dtype], seed: int) -> nn.Module:
    """The layer for ``module``, with its initial values; drop, act and hooks come later."""
    describe = find_source(module)
    assert describe is not None
    assert entry.target is not None
    source = describe(module)
    like = source.weight if source.weight is not None else source.running_mean
    device, dtype = fallback if like is None else (like.device, like.dtype)
    trainable = _trainable(source)
    layer = entry.target.build(drop=source.drop, act=source.act, device="meta", dtype=dtype)
    values = entry.target.initial_values(source, seed=seed, dtype=dtype)
    problem = beyond(values, dtype)
    if problem:
        raise ConversionError(f"can't convert {entry.name or 'the root'}: {problem}")
    for name, value in values.items():
        stored = value.to(device, dtype)
        if name in layer._buffers:
            layer._buffers[name] = stored
        else:
            layer._parameters[name] = nn.Parameter(stored, requires_grad=trainable["bias" in name])
    if isinstance(layer, ILMNorm):
        layer.encoder.requires_grad_(any(trainable.values()))
    accept_source_state(layer, SourceState.of(source, seed))
    layer.training = module.training
    return layer


def _trainable(source: NormDescription) -> dict[bool, bool]:
    """Whether the tensors for the scale (False) and for the shift (True) are trained; buffers are frozen."""

    def flag(t: Tensor | None) -> bool:
        return True if t is None else t.requires_grad

    return {False: flag(source.weight), True: flag(source.bias)}


def _fallback(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for a layer in place of one that has no tensor at all."""
    for t in model.parameters():
        if t.is_floating_point():
            return t.device, t.dtype
    return torch.get_default_device(), torch.get_default_dtype()


def _adopt(layer: nn.Module, module: nn.Module, memo: dict[int, Any] | None) -> None:
    """Give ``layer`` the hooks and fused modules of ``module``: copies if there is a memo, else the objects."""

    def take(value: Any) -> Any:
        return value if memo is None else copy.deepcopy(value, memo)

    adopt_hooks(layer, module, take)
    describe = find_source(module)
    assert describe is not None
    source = describe(module)
    for name in ("drop", "act"):
        if getattr(source, name) is not None:
            setattr(layer, name, take(getattr(source, name)))


def _copy_with(model: nn.Module, layers: dict[int, nn.Module], sources: dict[int, nn.Module]) -> nn.Module:
    """A deep copy in which every reference to a source, wherever it stands, is its new layer."""
    memo: dict[int, Any] = dict(layers)
    try:
        for key, layer in layers.items():
            _adopt(layer, sources[key], memo)
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as e:
        raise ConversionError(f"the model can't be copied ({e}); use inplace=True") from e


def _replace_children(model: nn.Module, layers: dict[int, nn.Module]) -> nn.Module:
    if id(model) in layers:
        return layers[id(model)]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in layers:
                parent._modules[name] = layers[id(child)]
    return model


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def adopt_hooks(layer: nn.Module, module: nn.Module, take: Callable[[Any], Any] = lambda value: value) -> None:
    """Give ``layer`` the forward and backward hooks of ``module``: what ``take`` makes of them, by default themselves.

    >>> old, new = nn.Identity(), nn.Identity()
    >>> handle = old.register_forward_hook(lambda module, args, result: result + 1)
    >>> adopt_hooks(new, old)
    >>> new(1)
    2
    """
    for name in _HOOKS:
        if getattr(module, name, None):
            setattr(layer, name, take(getattr(module, name)))
    layer._is_full_backward_hook = module._is_full_backward_hook
