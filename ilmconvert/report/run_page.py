"""The report of a fine-tuning run as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ilmconvert.data.readable import unreadable_text
from ilmconvert.report.figures import Share, curves_figure, shares_figure
from ilmconvert.report.pages import write_page
from ilmconvert.report.run import Arm, Run, arms, converted_here, label
from ilmconvert.report.run_tables import arms_table, epochs_table, heading, starts_measured, what_is_compared
from ilmconvert.report.text import TIMES, duration, share, small
from ilmconvert.surgery.group_norm_baseline import BASELINES

_RECIPE = (
    "train", "epochs", "batch_size", "grad_accum", "lr", "lr_base", "sched", "warmup_epochs", "opt", "momentum",
    "weight_decay", "anneal", "anneal_to", "distill", "to", "init", "first_only", "restore_bound", "seed", "amp",
)  # fmt: skip
_CURVES: tuple[tuple[str, str, str | None, bool], ...] = (
    ("Accuracy on validation images", "val_top1", "train_top1", True),
    ("Loss", "val_loss", "train_loss", False),
    ("Same first class as the teacher", "val_agreement", None, True),
)


def write_run(run: Run, path: str | Path) -> Path:
    """Write a run that :func:`ilmconvert.report.read_run` read as one HTML file.

    Raises:
        CheckpointError: the file can't be written.
    """
    table = arms(run)
    return write_page(
        "run.html.jinja",
        path,
        run=run,
        title=run.summary.get("model") or run.config.get("model", {}).get("name", "a network"),
        converted_here=converted_here(run),
        recipe=run.config.get("recipe", {}).get("name", ""),
        cards=_cards(run, table),
        heading=heading(table),
        about=what_is_compared(run, table),
        table=arms_table(run, table),
        epochs=epochs_table(run),
        from_epoch_0=starts_measured(run),
        shares=_shares(run, table),
        curves=[figure for spec in _CURVES if (figure := _curve(run, *spec)) is not None],
        legend=[(label(each.name, run), _kind(i)) for i, each in enumerate((run, *run.baselines))],
        notes=_notes(run),
        recipe_facts=_recipe_facts(run),
        facts=_facts(run),
    )


def _kind(index: int) -> str:
    return "converted" if index == 0 else f"b{(index - 1) % 3 + 1}"


def _cards(run: Run, table: Sequence[Arm]) -> list[tuple[str, str, str]]:
    own = table[0]
    cards = []
    if own.source is not None:
        cards.append(("Before: the source", share(own.source) or "", "on the same validation images"))
    before = run.summary.get("before") or {}
    agreement, other = before.get("agreement"), before.get("against") or "source"
    if own.start is not None:
        more = "" if agreement is None else f"{share(agreement)} the same class as the {other}"
        place = "Right after the conversion" if converted_here(run) else "At the start"
        cards.append((place, share(own.start) or "", more))
    elif agreement is not None:
        cards.append((f"At the start: same class as the {other}", share(agreement) or "", "before training"))
    if own.end is not None:
        low, high = own.end_interval or (math.nan, math.nan)
        epoch = f"epoch {own.best['epoch']:.0f}" if own.best else ""
        more = f"{epoch}; 95 %: {100 * low:.1f} to {100 * high:.1f} %" if own.end_interval else epoch
        cards.append(("After fine-tuning", share(own.end) or "", more))
    elif own.best is not None and own.best.get("val_agreement") is not None:
        text = share(own.best["val_agreement"]) or ""
        cards.append(("After: same class as the teacher", text, f"epoch {own.best['epoch']:.0f}"))
    others = [arm for arm in table[1:] if arm.end is not None]
    if own.end is not None and others:
        best = max(others, key=lambda arm: arm.end or 0.0)
        gap = 100 * (own.end - (best.end or 0.0))
        cards.append(("Against the best baseline", f"{gap:+.1f} points", f"{label(best.name, run)}: {share(best.end)}"))
    seconds = run.rows[-1].get("seconds") if run.rows else None
    speed = run.rows[-1].get("images_per_second") if run.rows else None
    more = "" if speed is None else f"{small(speed)} images a second"
    cards.append(("Training time", duration(seconds), more))
    return cards


def _shares(run: Run, table: Sequence[Arm]) -> tuple[Markup, Markup] | None:
    """The intervals, drawn for a wide page and for a narrow one."""
    rows = [
        Share(label(arm.name, run), arm.end, arm.end_interval, _kind(i))
        for i, arm in enumerate(table)
        if arm.end is not None
    ]
    if table[0].source is not None:
        rows.insert(0, Share("the source, before", table[0].source, None, "source"))
    title = "top-1 accuracy on validation images"
    return (shares_figure(rows, title), shares_figure(rows, title, narrow=True)) if len(rows) > 1 else None


def _curve(run: Run, title: str, column: str, train: str | None, percent: bool) -> tuple[str, Markup] | None:
    series: dict[str, list[tuple[float, float]]] = {}
    kinds: dict[str, str] = {}
    for i, each in enumerate((run, *run.baselines)):
        name = label(each.name, run)
        for key, text, kind in (
            (column, name, _kind(i)),
            (train if i == 0 else None, f"{name}, training", f"{_kind(i)} train"),
        ):
            points = _points(each.rows, key) if key else []
            if points and key == "val_top1" and each.start is not None:
                points.insert(0, (0.0, each.start))
            if points:
                series[text], kinds[text] = points, kind
    if not series or (label(run.name, run) not in series and column != "val_loss"):
        return None
    show: Callable[[float], str] = (lambda y: f"{100 * y:.4g} %") if percent else (lambda y: f"{y:.3g}")
    return title, curves_figure(series, kinds, title, show, from_zero=percent)


def _points(rows: Sequence[Mapping[str, float | None]], column: str) -> list[tuple[float, float]]:
    found = [(row.get("epoch"), row.get(column)) for row in rows]
    return [(x, y) for x, y in found if x is not None and y is not None and math.isfinite(y)]


def _notes(run: Run) -> list[str]:
    notes = []
    if not run.finished:
        epochs = run.config.get("recipe", {}).get("epochs", "?")
        notes.append(
            f"The run isn't finished: {len(run.rows)} of {epochs} epochs are done, and the best of them is shown."
        )
    if run.config.get("model", {}).get("head_replaced"):
        notes.append(
            "The head is new, so that neither the source nor the converted network can be measured before training."
        )
    if run.rows and not run.validated:
        notes.append("There are no validation images, so that nothing here tells how well the network does on others.")
    if run.finished and not run.baselines:
        cure = f"--baseline runs one ({', '.join(BASELINES)})"
        if not converted_here(run):
            cure += ", but of a model that still has its BatchNorm: name that instead of the checkpoint"
        notes.append(f"No baseline was run, so that this doesn't tell what other ways would have given: {cure}.")
    elif run.baselines:
        notes.append(
            "One run each: another seed may change any row by as much as the intervals span. Runs with several seeds "
            "are put together by ilmconvert report RUN RUN ..."
        )
    return notes


def _recipe_facts(run: Run) -> list[tuple[str, str]]:
    recipe = run.config.get("recipe", {})
    hidden = {"lr_base"} if recipe.get("lr") is not None else set[str]()
    if not converted_here(run):
        hidden |= {"to", "init", "first_only", "restore_bound"}
    empty = (None, "none", "no", 0.0)
    kept = [key for key in _RECIPE if key not in hidden and (key == "seed" or recipe.get(key) not in empty)]
    kept = [key for key in kept if key in recipe]
    return [(key.replace("_", " "), str(recipe[key])) for key in kept]


def _facts(run: Run) -> list[tuple[str, str]]:
    config = run.config
    data, model = config.get("data", {}), config.get("model", {})
    shape = f" {TIMES} ".join(map(str, data.get("input_size") or ())) or None
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    classes = data.get("classes")
    rows: list[tuple[str, Any]] = [
        ("run folder", run.path),
        ("images", data.get("source")),
        ("training, validation", f"{data.get('train')}, {data.get('val') or 'none'}"),
        ("left out", unreadable_text(data["unreadable"]) if data.get("unreadable") else None),
        (
            "classes",
            None if classes is None else f"{len(classes)}: {', '.join(classes[:6])}{', …' if len(classes) > 6 else ''}",
        ),
        ("input", shape),
        ("SHA-256 of the weights at the start", model.get("fingerprint")),
        ("versions", versions),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]
