"""Digits that new layers lose beside their sources: known from the running statistics and from what is stored."""

from __future__ import annotations

import warnings

import torch

from ilmconvert.errors import PrecisionLost
from ilmconvert.nn.float64 import float64
from ilmconvert.surgery.initialization import affine, group_moments
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.plan import Plan
from ilmconvert.surgery.sources import NormDescription, describe_norm

# A step that a scale near one has to be able to take.
_STEP = 0.01
# So many roundings of a layer's type, and this part of a channel's usual output, are more than one should lose unsaid.
_ROUNDINGS, _PART = 10.0, 1e-3


def lost_part(source: NormDescription, config: LayerConfig) -> float:
    """The largest error, as a part of a channel's usual output, that the new layer of ``source`` adds; 0 if small.

    A channel's usual output is ``|beta| + |gamma|``, what a batch-level source gives for inputs with its running
    statistics. Small is what ten roundings of the source do, or 1e-3. The layer adds what its stored values, which
    are rounded to the source's type, are off the source's affine function; with a bound on the restoring path, also
    the rounding of the group's statistics, which then no longer cancel.

    >>> from ilmconvert.surgery.ilm_norm_target import ILMNormConfig
    >>> from ilmconvert.surgery.settings import Settings
    >>> mean, var = torch.tensor([300.0] + [0.0] * 7).bfloat16(), torch.full((8,), 3.0).bfloat16()
    >>> source = NormDescription(8, 0.0, running_mean=mean, running_var=var)
    >>> [round(lost_part(source, ILMNormConfig.for_source(source, groups, Settings())), 2) for groups in (1, 8)]
    [0.49, 0.0]
    """
    mean, var = source.running_mean, source.running_var
    if mean is None or var is None or mean.is_meta:
        return 0.0
    dtype = mean.dtype if source.weight is None else source.weight.dtype
    if dtype.itemsize >= 4 and not config.bounded:
        return 0.0  # the values are made for each other, and the statistics cancel
    values = {name: t.to(dtype).double() for name, t in config.initial_values(source, dtype=dtype).items()}
    if "restore_weight" not in values or not all(t.isfinite().all() for t in values.values()):
        return 0.0  # not exact anyway, or refused
    a, c = affine(source)
    mean, var = float64(mean), float64(var)
    std = (var + source.eps).sqrt()
    in_group = source.num_channels // values["ref_std"].numel()
    ref_mean, ref_std = (values[name].repeat_interleave(in_group) for name in ("ref_mean", "ref_std"))
    gain = values["restore_weight"] / ref_std
    error = ((gain - a) * mean + values["bias"] - gain * ref_mean - c).abs() + (gain - a).abs() * std
    unit, own = (torch.finfo(t).eps / 2 for t in (dtype, torch.promote_types(dtype, torch.float32)))
    if config.bounded:
        error += own * a.abs() * (ref_mean.abs() + ref_std / in_group**0.5)
    usual = (a * std).abs() + (a * mean + c).abs()
    # In float32 a source loses digits of large means itself.
    allowed = torch.maximum(max(_ROUNDINGS * unit, _PART) * usual, _ROUNDINGS * own * (a * mean).abs())
    part = (error / usual.clamp(min=torch.finfo(torch.float64).tiny))[error > allowed]
    return part.max().item() if part.numel() else 0.0


def is_stuck(source: NormDescription, config: LayerConfig) -> bool:
    """Whether a channel's scale in the new layer of ``source`` can't be trained, since its group is so much larger.

    The layer keeps ``weight``, the scale beside the group's deviation. Where that is so far above the channel's own
    that a step of 0.01 in the source's gamma is lost in the rounding of ``weight``, the step does nothing. What the
    meta-network adds goes through the group's statistics, and is as blind to the channel as a GroupNorm.

    >>> from ilmconvert.surgery.ilm_norm_target import ILMNormConfig
    >>> from ilmconvert.surgery.settings import Settings
    >>> source = NormDescription(2, 0.0, running_mean=torch.tensor([1e9, 0.0]), running_var=torch.ones(2))
    >>> [is_stuck(source, ILMNormConfig.for_source(source, groups, Settings())) for groups in (1, 2)]
    [True, False]
    """
    mean, var = source.running_mean, source.running_var
    if mean is None or var is None or mean.is_meta or not config.is_exact(source):
        return False
    largest = _STEP / torch.finfo(torch.promote_types(mean.dtype, torch.float32)).eps
    mean, var = float64(mean), float64(var)
    spread = group_moments(mean, var, config.num_groups)[1] + source.eps
    return bool((spread.sqrt().unsqueeze(1) > largest * (var + source.eps).sqrt().view(len(spread), -1)).any())


def warn_of_lost_digits(the_plan: Plan, *, stacklevel: int) -> None:
    """Warn in one line of the layers of ``the_plan`` that lose digits, and of those that can't be trained."""
    lost: dict[str, float] = {}
    stuck = []
    for entry in the_plan.converted:
        source = describe_norm(the_plan.modules[entry.name])
        if source is None or entry.target is None:
            continue
        if part := lost_part(source, entry.target):
            lost[entry.name] = part
        elif is_stuck(source, entry.target):
            stuck.append(entry.name)
    if lost:
        worst = max(lost, key=lambda name: lost[name])
        bounded = the_plan.settings.restore_bound is not None
        reason = "a bound on groups" if bounded else "16-bit values of groups"
        cure = "leave out restore_bound" if bounded else "convert in float32 and run under autocast"
        _warn(
            f"{_said(worst, len(lost))} digits, up to {lost[worst]:.1g} of a channel's usual output: {reason} whose "
            f"channels differ so much; {cure}, or use to='ilm_in'",
            stacklevel + 1,
        )
    if stuck:
        _warn(
            f"{_said(stuck[0], len(stuck))} nothing as converted, but can't be trained well: some scales vanish beside "
            "their group's; use to='ilm_in' before fine-tuning",
            stacklevel + 1,
        )


def _said(name: str, count: int) -> str:
    name = name or "the root"
    return f"{name} loses" if count == 1 else f"{name} and {count - 1} more layer{'s' * (count > 2)} lose"


def _warn(text: str, stacklevel: int) -> None:
    warnings.warn(text, PrecisionLost, stacklevel=stacklevel + 1)
