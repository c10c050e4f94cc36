"""What ``ilmconvert convert`` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import warn
from ilmconvert.cli._formats import written
from ilmconvert.cli._table import print_facts

if TYPE_CHECKING:
    from torch import nn

    from ilmconvert.surgery import Plan


def print_summary(summary: dict[str, Any]) -> None:
    from ilmconvert.data.readable import unreadable_text
    from ilmconvert.report.text import share

    spec, layers, parameters, error = (summary[key] for key in ("spec", "layers", "parameters", "error"))
    before, after = parameters["before"], parameters["after"]
    rows = [
        ("source", f"{spec['library']} {spec['architecture']}, weights: {summary['provenance']['weights']}"),
        ("layers converted", str(layers["converted"])),
        *(("layers skipped", f"{count}: {reason}") for reason, count in layers["skipped"].items()),
        ("parameters", f"{before:,} before, {after:,} after ({share(after / before - 1, sign='+')})"),
        ("error against the source", _error_text(error)),
    ]
    if summary["bounded"] is not None:
        low, high, radius = summary["bounded"]["limits"]
        limits = f"log contrast {low:+.2f} to {high:+.2f}, means within {radius:.2f}"
        rows.append((f"bounded: {summary['bounded']['layer']}", limits))
        if summary["bounded"]["unreadable"]:
            rows.append(("left out", unreadable_text(summary["bounded"]["unreadable"])))
    if summary["timm"] is not None:
        arguments = [f"{key}={value!r}" for key, value in summary["timm"].items() if key != "model_name"]
        call = ", ".join([repr(summary["timm"]["model_name"]), *arguments])
        rows.append(("loads with stock timm", f"timm.create_model({call}, checkpoint_path=...)"))
    print_facts(f"{summary['model']} to {summary['to']} ({summary['init']})", rows)
    click.echo(written(summary))


def _error_text(error: dict[str, Any] | None) -> str:
    from ilmconvert.report.text import share

    if error is None:
        return "not measured"
    text = f"{error['relative_error']:.1e} of the largest output ({error['largest_error']:.1e})"
    agreement = error["top1_agreement"]
    return text if agreement is None else f"{text}; top-1 agreement {share(agreement, digits=0)}"


def rounding() -> float:
    """The relative error that single precision allows, in which models are built here."""
    import torch

    from ilmconvert.evaluation.tolerances import ROUNDING

    return ROUNDING[torch.float32]


def warn_if_not_exact(summary: dict[str, Any]) -> None:
    """Say it loudly where a conversion that should be exact isn't."""
    error = summary["error"]
    if not summary["exact"] or error is None or error["relative_error"] <= rounding():
        return
    reason = f" ({error['reason']})" if "reason" in error else ""
    message = (
        f"THE CONVERTED MODEL DIFFERS FROM ITS SOURCE: relative error {error['relative_error']:.1e}, expected at most "
        f"{rounding():g}{reason}. Don't rely on {summary['output']} unless that is rounding; please report the model."
    )
    warn(message, loud=True)


def facts(name: str, source: nn.Module, converted: nn.Module, plan: Plan) -> dict[str, Any]:
    """What was converted into what."""
    from ilmconvert.export.stock_timm import timm_arguments
    from ilmconvert.surgery import info

    known = info(source).to_dict()
    return {
        "model": name,
        "spec": known["spec"],
        "provenance": known["provenance"],
        "to": plan.settings.to,
        "init": plan.settings.init,
        "exact": plan.settings.is_exact,
        "layers": count_layers(plan),
        "parameters": {"before": _parameters(source), "after": _parameters(converted)},
        "timm": timm_arguments(converted),
    }


def count_layers(plan: Plan) -> dict[str, Any]:
    """How many norm layers are converted, and how many stay for which reason."""
    reasons = Counter(entry.reason or "" for entry in plan.skipped)
    return {"converted": len(plan.converted), "skipped": dict(reasons.most_common())}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
