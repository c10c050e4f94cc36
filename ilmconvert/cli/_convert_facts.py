"""What ``ilmconvert convert`` tells of a conversion."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ilmconvert.surgery import Plan


def facts(name: str, source: nn.Module, converted: nn.Module, plan: Plan) -> dict[str, Any]:
    """What was converted into what."""
    return {
        "model": name,
        "spec": source.ilmconvert_spec.to_dict(),  # type: ignore[operator, union-attr]
        "provenance": source.ilmconvert_provenance,
        "to": plan.settings.to,
        "init": plan.settings.init,
        "layers": count_layers(plan),
        "parameters": {"before": _parameters(source), "after": _parameters(converted)},
        "timm": _timm_arguments(converted, plan),
    }


def _timm_arguments(converted: nn.Module, plan: Plan) -> dict[str, Any] | None:
    """What stock timm loads a plain network with; None for others."""
    if not plan.settings.plain:
        return None
    from ilmconvert.plain import timm_arguments

    return timm_arguments(converted)


def count_layers(plan: Plan) -> dict[str, Any]:
    """How many norm layers are converted, and how many stay for which reason."""
    reasons = Counter(entry.reason or "" for entry in plan.skipped)
    return {"converted": len(plan.converted), "skipped": dict(reasons.most_common())}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
