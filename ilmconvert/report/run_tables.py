"""The tables of a run's page, without columns in which nothing was measured, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ilmconvert.report.run import Arm, Run, arms, converted_here, label
from ilmconvert.report.tables import Cell, Table
from ilmconvert.report.text import NONE, share, small


def arms_table(run: Run, table: Sequence[Arm] | None = None) -> Table:
    """The networks of a run before, right after their norms were replaced, and after fine-tuning."""
    columns = ("Network", "Before", "Right after", "After", "Top-5", "Loss", "Agreement", "Best epoch")
    rows = [_arm(arm, run) for arm in (arms(run) if table is None else table)]
    return Table(columns, rows, numbers=1, marked=0).without_empty_columns()


def _arm(arm: Arm, run: Run) -> tuple[str | Cell, ...]:
    best: Mapping[str, Any] = arm.best or {}
    low_high = "" if arm.end_interval is None else "{:.1f} to {:.1f}".format(*(100 * end for end in arm.end_interval))
    return (
        label(arm.name, run),
        share(arm.source) or NONE,
        share(arm.start) or NONE,
        Cell(share(arm.end) or NONE, low_high),
        share(best.get("val_top5")) or NONE,
        small(best.get("val_loss")),
        share(best.get("val_agreement")) or NONE,
        f"{best['epoch']:.0f} of {arm.epochs}" if best else NONE,
    )


def epochs_table(run: Run) -> Table:
    """Every epoch of the run itself."""
    columns = (
        "Epoch", "Training loss", "Validation loss", "Top-1", "Agreement", "Learning rate", "Restoring path"
    )  # fmt: skip
    rows = [
        (
            f"{row['epoch']:.0f}",
            small(row.get("train_loss")),
            small(row.get("val_loss")),
            share(row.get("val_top1")) or NONE,
            share(row.get("val_agreement")) or NONE,
            small(row.get("lr")),
            share(row.get("restore")) or NONE,
        )
        for row in run.rows
    ]
    return Table(columns, rows, numbers=0).without_empty_columns()


def starts_measured(run: Run) -> bool:
    """Whether any curve of the accuracy has a point before the first epoch."""
    return any(each.start is not None and each.validated for each in (run, *run.baselines))


def heading(table: Sequence[Arm]) -> str:
    """What stands above the table of the networks."""
    if any(arm.source is not None for arm in table):
        return "Before, right after, after"
    return "At the start and after" if any(arm.start is not None for arm in table) else "After fine-tuning"


def what_is_compared(run: Run, table: Sequence[Arm]) -> str:
    """One sentence on what the table's shares are of."""
    started = any(arm.start is not None for arm in table)
    if not started and all(arm.end is None for arm in table):
        if any((arm.best or {}).get("val_agreement") is not None for arm in table):
            return "The share of validation images that the network gives its teacher's class, in its best epoch."
        return "Nothing was measured on validation images."
    text = "Top-1 accuracy on the validation images"
    if not started:
        return f"{text}, of each network's best epoch."
    if any(arm.source is not None for arm in table):
        text += ": of the source,"
    else:
        text += ":"
    now = "its norms had just been replaced" if converted_here(run) else "it came, already converted"
    return f"{text} of the network {'when' if converted_here(run) else 'as'} {now}, and of its best epoch."
