"""Tables of networks under corruption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.report import Cell, Table
from ilmconvert.evaluation.robustness import CLEAN, Agreement, Condition, agreements, standard_error

SOURCE, BASELINE = "source", "input standardised"
Z = 1.96


def tables_of(
    found: dict[Condition, dict[str, Tensor]], labels: Sequence[int | None]
) -> tuple[list[Table], list[Agreement]]:
    """All tables, and the agreements."""
    reference = found[Condition(CLEAN)][SOURCE]
    known = torch.tensor([label is not None for label in labels])
    truth = torch.tensor([-1 if label is None else label for label in labels])
    rows: list[Agreement] = []
    hits: dict[str, dict[str, list[Tensor]]] = {}
    right: dict[str, dict[str, list[Tensor]]] = {}
    for condition, classes in found.items():
        rows += agreements(condition, classes, reference)
        for title, given in classes.items():
            hits.setdefault(condition.name, {}).setdefault(title, []).append((given == reference).double())
            right.setdefault(condition.name, {}).setdefault(title, []).append((given == truth)[known].double())
    count = f"{len(labels)} images"
    tables = [
        mean_table(f"Agreement with the source's class of the clean image, {count}, mean over severities", hits),
        severity_table(f"Agreement, {count}, severity by severity", rows),
        losses(rows),
    ]
    if known.sum() > 1:
        title = f"Accuracy on the {int(known.sum())} images with an ImageNet label, mean over severities"
        tables.append(mean_table(title, right))
    return tables, rows


def severity_table(title: str, rows: Sequence[Agreement]) -> Table:
    """One line a condition, one column a network: the share, and its 95 % interval."""
    table = Table(title)
    for condition in dict.fromkeys(row.condition for row in rows):
        line: dict[str, Cell] = {"condition": condition.name, "severity": condition.severity}
        for row in rows:
            if row.condition == condition:
                line[row.network] = f"{row.agreement:.2f} ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
        table.rows.append(line)
    return table


def mean_table(title: str, hits: dict[str, dict[str, list[Tensor]]]) -> Table:
    """The mean over severities and its 95 % interval, from the images' own means: each counts once."""
    table = Table(title)
    for condition, networks in hits.items():
        line: dict[str, Cell] = {"condition": condition}
        for network, found in networks.items():
            share = torch.stack(found).mean(0)
            half = Z * standard_error(share)
            line[network] = f"{share.mean().item():.3f} ± {half:.3f}"
        table.rows.append(line)
    return table


def losses(rows: Sequence[Agreement]) -> Table:
    """The conditions in which a bounded network loses most to the source, in standard errors of the difference."""
    bounded = [row for row in rows if row.network not in (SOURCE, BASELINE) and row.gain < 0]
    worst = sorted(bounded, key=lambda row: row.gain / row.gain_error)[:5]
    table = Table("Largest losses of a bounded network against the source")
    for row in worst:
        place = {"condition": row.condition.name, "severity": row.condition.severity, "network": row.network}
        table.rows.append({**place, "loss": -row.gain, "standard errors": -row.gain / row.gain_error})
    return table
