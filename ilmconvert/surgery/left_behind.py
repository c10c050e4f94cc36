"""Norm layers that a conversion leaves as they are, though they may be what it was for."""

from __future__ import annotations

import warnings

from torch import nn

from ilmconvert.errors import NormsLeftBehind
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.plan import Plan, norm_like
from ilmconvert.surgery.sources import describe_norm, is_left_behind, reason_to_skip

_NAMED = 3


def left_behind(model: nn.Module) -> dict[str, str]:
    """The norm layers of ``model`` that have running statistics or a formula that is unknown here.

    A converted model should have none, unless layers were excluded. LayerNorm, RMSNorm and other known layers that
    compute without a batch aren't listed; :func:`ilmconvert.plan` lists them.

    Args:
        model: converted or not; isn't changed.

    Returns:
        Why each is there, by its dotted name.

    >>> import ilmconvert
    >>> model = nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8))
    >>> _ = model[0].running_mean.fill_(1)
    >>> left_behind(model)
    {'0': 'a BatchNorm2d, which can be converted'}
    >>> left_behind(ilmconvert.convert(model, exclude="2"))
    {}
    """
    found = {}
    for name, module in norm_like(model):
        if isinstance(module, ILMNorm):
            continue
        source = describe_norm(module)
        if source is not None and source.num_groups is None:
            found[name] = f"a {type(module).__name__}, which can be converted"
        elif source is None and is_left_behind(module):
            found[name] = reason_to_skip(module) or "unknown"
    return found


def warn_left_behind(the_plan: Plan, *, stacklevel: int) -> None:
    """Warn in one line of what ``the_plan`` leaves behind, if anything."""
    left = [entry for entry in the_plan if entry.left_behind]
    if not left:
        return
    names = ", ".join(f"{e.name or 'the root'} ({e.source.rsplit('.', 1)[-1]})" for e in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    some = "1 norm layer stays" if len(left) == 1 else f"{len(left)} norm layers stay"
    warnings.warn(
        f"{some} as before the conversion: {names}{more}; {left[0].reason} "
        "(ilmconvert.plan lists the reasons; exclude=... keeps layers without this warning)",
        NormsLeftBehind,
        stacklevel=stacklevel + 1,
    )
