"""The decision for one norm-like module: what replaces it, why it stays, or why it can't be converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery import refuse_wrapped
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.settings import DEFAULT_NUM_GROUPS, Settings
from ilmconvert.surgery.sources import (
    NormDescription,
    describe_norm,
    find_source,
    is_left_behind,
    qualified_name,
    reason_to_skip,
    recognition,
    source_base,
)
from ilmconvert.surgery.surroundings import LooseNorm, Surroundings
from ilmconvert.surgery.targets import config_class, group_count

ALREADY_CONVERTED = "already an ILM Norm"


@dataclass(frozen=True)
class PlanEntry:
    """One norm-like module: what replaces it (``target``), or why nothing does.

    Attributes:
        name: dotted path in the model; "" for the root itself.
        source: its class, as ``module.Class``.
        aliases: other paths of the same module.
        num_channels: C, where known.
        target: the settings of the layer in its place, or None.
        reason: why it stays, or None.
        error: why the model can't be converted with it as asked, or None.
        note: what a reader of the plan should know.
        never_trained: running statistics 0 and 1, as at construction.
        left_behind: it stays though nobody excluded it, and has running statistics or an unknown formula.
        registered: whether a module of the model registers it; otherwise ``name`` says what holds it.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    num_channels: int | None = None
    target: LayerConfig | None = None
    reason: str | None = None
    error: str | None = None
    note: str | None = None
    never_trained: bool = False
    left_behind: bool = False
    registered: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON values."""
        target = None if self.target is None else self.target.to_dict()
        return {**vars(self), "aliases": list(self.aliases), "target": target}


def decide(names: list[str], module: nn.Module, settings: Settings, around: Surroundings) -> PlanEntry:
    """The entry of one norm-like module, whose paths in the model are ``names``."""
    entry = PlanEntry(names[0], qualified_name(type(module)), tuple(names[1:]))
    if isinstance(module, ILMNorm):
        return replace(entry, num_channels=module.num_channels, reason=ALREADY_CONVERTED)
    reason = settings.reason_to_skip(names)
    if find_source(module) is None:
        error = refuse_wrapped.parametrized_error(module) if source_base(module) is not None else None
        if error is not None and reason is None:
            return replace(entry, error=error)
        return replace(
            entry, reason=reason or reason_to_skip(module), left_behind=reason is None and is_left_behind(module)
        )
    try:
        source = describe_norm(module)
    except ConversionError as e:
        return replace(entry, reason=reason, error=None if reason else str(e))
    assert source is not None
    entry = replace(entry, num_channels=source.num_channels)
    if reason is not None:
        return replace(entry, reason=reason)
    reason = around.reason(module, source, asked_for=settings.names(names))
    if reason is not None:
        return replace(entry, reason=reason, left_behind=True)
    error = refuse_wrapped.parametrized_error(module) or _statistics_error(source) or around.error(module, source)
    target, note, regrouping = _target(source, settings)
    return replace(
        entry,
        target=target,
        error=error or regrouping,
        note="; ".join(filter(None, (_recognition_note(module, source), note, around.note(module, source)))) or None,
        never_trained=error is None and _never_trained(source),
    )


def loose(norm: LooseNorm, settings: Settings) -> PlanEntry:
    """The entry of a norm that no module registers."""
    excluded = settings.reason_to_skip([norm.path])
    return PlanEntry(
        norm.path,
        qualified_name(type(norm.module)),
        reason=excluded or "no module registers it: state dicts, .to() and optimizers miss it; hold it in a ModuleList",
        left_behind=excluded is None,
        registered=False,
    )


def _target(source: NormDescription, settings: Settings) -> tuple[LayerConfig, str | None, str | None]:
    """Settings of the new layer, a note, and an error where the grouping asked for can't start as the identity."""
    target = settings.target
    groups = group_count(target, source.num_channels, settings.num_groups)
    note = error = None
    if source.num_groups is not None and source.num_groups != groups:
        if target.groups == "several" and settings.num_groups == DEFAULT_NUM_GROUPS:
            groups, note = source.num_groups, "keeps its own groups"
        elif settings.init == "moments":
            note = f"the statistics of its {source.num_groups} groups are lost; gamma and beta are kept"
        else:
            error = (
                f"its {source.num_groups} groups can't become {groups} and compute the same: exclude it, "
                "use to='ilm_gn' (keeps its groups) or init='moments' (keeps only gamma and beta)"
            )
    config = config_class(target).for_source(source, groups, settings)
    if error is None and settings.init == "identity" and not (config.bounded or config.is_exact(source)):
        error = f"{config} can't compute what it does: exclude it, or use to='ilm_gn'"
    if source.input_dims is not None and not config.takes_single_instances:
        note = note or "takes batches alone, no single instance"
    return config, note, error


def _statistics_error(source: NormDescription) -> str | None:
    if source.num_groups is not None:
        return None
    mean, var = source.running_mean, source.running_var
    if mean is None or var is None:
        return "no running statistics, so its evaluation depends on the batch; train with track_running_stats=True"
    if mean.is_meta or var.is_meta or not mean.numel():
        return None
    (least, most), (lowest, highest) = _limits(mean), _limits(var)
    if not all(map(isfinite, (least, most, lowest, highest))):
        return "its running statistics hold NaN or infinity; re-estimate them or exclude it"
    # In the source's own precision: what it divides by.
    own = torch.promote_types(var.dtype, torch.float32)
    if (torch.tensor(lowest, dtype=own, device="cpu") + source.eps).item() <= 0:
        return "its running variance is negative by eps or more, or 0 with eps 0; re-estimate it or exclude it"
    return None


def _never_trained(source: NormDescription) -> bool:
    mean, var = source.running_mean, source.running_var
    if mean is None or var is None or mean.is_meta or not mean.numel():
        return False
    return _limits(mean) == (0, 0) and _limits(var) == (1, 1)


def _limits(t: Tensor) -> tuple[float, float]:
    """The least and the greatest value; NaN where there is one."""
    low, high = torch.aminmax(t.detach())
    return low.item(), high.item()


def _recognition_note(module: nn.Module, source: NormDescription) -> str | None:
    found = recognition(module)
    return _orphan_note(module, source) if found is None else f"recognised by its values as {found}"


def _orphan_note(module: nn.Module, source: NormDescription) -> str | None:
    """torch's SyncBatchNorm converter keeps the children of timm's BatchNormAct2d but never calls them."""
    used = {id(source.act), id(source.drop)}
    unused = [n for n, child in module.named_children() if id(child) not in used and type(child) is not nn.Identity]
    return f"its children {', '.join(unused)} were never called and are dropped" if unused else None
