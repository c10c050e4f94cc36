"""The operation itself: all planned replacements, or none."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.carry_out import carry_out
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.example import Differs, Example, find_difference
from ilmconvert.surgery.left_behind import warn_left_behind
from ilmconvert.surgery.plan import Plan, norm_like, plan, seen
from ilmconvert.surgery.plan_entry import ALREADY_CONVERTED
from ilmconvert.surgery.precision import warn_of_lost_digits
from ilmconvert.surgery.refuse_wrapped import refuse_other
from ilmconvert.surgery.settings import DEFAULT_NUM_GROUPS

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
    first_only: bool = False,
    example: Any = None,
) -> nn.Module:
    """Replace the BatchNorm, GroupNorm and InstanceNorm layers of ``model`` by ILM Norm layers.

    With ``init="identity"`` the result computes what ``model.eval()`` computes, up to rounding, for every input:
    a restoring path around the paper's auto-encoder gives each instance its own statistics back. With
    ``init="moments"`` the result is the paper's layer alone, started from the running statistics; it computes
    something close, and needs fine-tuning. Fused activations, child order, device, dtype, training flags,
    ``requires_grad``, hooks, attributes of modules and parameters, and shared modules are kept; a norm is replaced
    wherever the model holds it, in lists and attributes as well. Any failure leaves ``model`` as it was.
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
        first_only: convert only the first norm that can be, of those that ``include`` and ``exclude`` let through; the
            others stay as they are. First in the order of registration, which is that of execution for the networks
            of timm and torchvision.
        example: an input to try the conversion on, in evaluation mode: a tensor, a tuple of positional inputs, or a
            mapping of named ones. The result has to run on it, and an exact conversion has to compute what the model
            does, up to rounding. Other code may use a norm's values in ways that don't show in the model's source text.

    Raises:
        ConversionError: nothing to convert, a layer that can't be converted as asked, a norm that the model holds in
            a place that can't be written, a wrapped model, a plan that was made for another model, or a result that
            differs on the example (what is to blame is named).
        ValueError: an argument is out of its range.

    Warns:
        UserWarning: a pattern matches nothing, a BatchNorm was never trained or trains while the model evaluates, or
            all is converted already.
        PrecisionLost: 16-bit values, or a bound, cost layers digits that their sources have; or a channel is so small
            beside its group that training can't move its scale.
        NormsLeftBehind: norm layers stay that have running statistics or an unknown formula.

    Source: Jia, Chen, Chen, CVPR 2019, for the layer; the restoring path is this library's.

    >>> import torch
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
        "first_only": first_only,
    }
    refuse_other(model)
    the_plan = _fitting(to, model, asked) if isinstance(to, Plan) else plan(model, to, **asked)
    _check(the_plan)
    _warn_of_batches(the_plan, model)
    found = noted(model)
    if example is None or not the_plan.converted:
        result = carry_out(the_plan, model, inplace=inplace)
    else:
        result = _checked(the_plan, model, Example.of(model, example), inplace=inplace)
    if the_plan.converted:
        note(result, found, settings={"to": the_plan.settings.to, "init": the_plan.settings.init})
    return result


def _checked(the_plan: Plan, model: nn.Module, example: Example, *, inplace: bool) -> nn.Module:
    """The plan carried out, if the result then computes what the model does."""
    exact = the_plan.settings.is_exact
    try:
        return carry_out(the_plan, model, inplace=inplace, check=lambda result: example.check(result, exact=exact))
    except Differs as e:
        cause = e.__cause__
    reason = find_difference(model, the_plan, example) if exact else None
    if reason is None and cause is not None:
        reason = f"it fails on the example: {cause}"
    if reason is not None:
        raise ConversionError(f"the converted model isn't the same, {reason}") from cause
    return carry_out(the_plan, model, inplace=inplace)


def _fitting(the_plan: Plan, model: nn.Module, asked: Mapping[str, Any]) -> Plan:
    """The plan, if it is one of this model as it stands and nothing else was asked for."""
    other = sorted(name for name, value in asked.items() if value != _DEFAULTS[name])
    if other:
        raise ValueError(f"the plan holds the settings; give {', '.join(other)} to ilmconvert.plan instead")
    norms = dict(norm_like(model))
    for entry in the_plan:
        for name in (entry.name, *entry.aliases):
            if entry.registered and norms.pop(name, None) is not the_plan.modules[entry.name]:
                where = repr(name) if name else "the root"
                raise ConversionError(f"the plan isn't one of this model as it stands: {where} is another module there")
    if norms:
        raise ConversionError(f"the plan isn't one of this model as it stands: it lacks {next(iter(norms))!r}")
    return the_plan


def _warn_of_batches(the_plan: Plan, model: nn.Module) -> None:
    """Of BatchNorms that go on in training mode while the model evaluates, as for test-time adaptation."""
    modules = ((e.name, the_plan.modules[e.name]) for e in the_plan.converted)
    names = [name for name, module in modules if module.training and isinstance(module, _BatchNorm)]
    if names and not model.training:
        warnings.warn(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} normalises by its batch, being in "
            "training mode in a model that evaluates; the new layer computes what it computes in evaluation mode",
            stacklevel=3,
        )


def _check(the_plan: Plan) -> None:
    if the_plan.errors:
        first, rest = the_plan.errors[0], len(the_plan.errors) - 1
        more = f" (and {rest} more layers, see ilmconvert.plan)" if rest else ""
        source = first.source.rsplit(".", 1)[-1]
        raise ConversionError(f"can't convert {first.name or 'the root'} ({source}): {first.error}{more}")
    already = any(e.reason == ALREADY_CONVERTED for e in the_plan)
    unmatched = [f"pattern {pattern!r} matches no norm layer" for pattern in the_plan.unmatched]
    if not the_plan.converted and not already:
        holds = f"the model holds: {seen(the_plan.skipped)}"
        cure = ["ilmconvert.plan(model), or ilmconvert plan MODEL, lists the names"] if unmatched else []
        raise ConversionError("; ".join(["nothing to convert", *unmatched, holds, *cure]))
    for message in unmatched:
        warnings.warn(message, stacklevel=3)
    if not the_plan.converted:
        if "identity" not in the_plan.settings.target.starts:
            raise ConversionError(
                "the norm layers are ILM Norms: convert their source, or use ilmconvert.calibration.collapse.collapse"
            )
        warnings.warn("nothing to do: the norm layers of this model are ILM Norms already", stacklevel=3)
        return
    untrained = [e.name for e in the_plan.converted if e.never_trained]
    if untrained:
        warnings.warn(
            f"{len(untrained)} BatchNorm layers were never trained (running statistics 0 and 1), first "
            f"{untrained[0]!r}: load weights before converting",
            stacklevel=3,
        )
    warn_of_lost_digits(the_plan, stacklevel=3)
    warn_left_behind(the_plan, stacklevel=3)
