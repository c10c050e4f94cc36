"""What ``ilmconvert evaluate`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ilmconvert.cli._data_options import left_out
from ilmconvert.cli._table import print_facts, print_table

if TYPE_CHECKING:
    from ilmconvert.data.open_data import Data
    from ilmconvert.evaluation.accuracy import Evaluation
    from ilmconvert.evaluation.robustness import Condition

    Corrupted: TypeAlias = list[tuple[Condition, Evaluation]]


def to_dict(
    named: dict[str, Any], found: Data, config: dict[str, Any], result: Evaluation, corrupted: Corrupted
) -> dict[str, Any]:
    """The numbers as JSON values, below what was ``named``: the networks and the images."""
    from ilmconvert.data.trained_images import described

    facts = {**named, "input": described(config)}
    if corrupted:
        facts["corrupted"] = [{**vars(condition), **each.to_dict()} for condition, each in corrupted]
    return {**facts, "unreadable": found.unreadable, **result.to_dict()}


def print_evaluation(
    title: str, found: Data, config: dict[str, Any], result: Evaluation, corrupted: Corrupted, against: str | None
) -> None:
    """The tables: on the images as they are, and under corruptions, where there are any."""
    from ilmconvert.data.transforms import transform_text
    from ilmconvert.report.facts import corrupted_table, evaluation_facts

    print_facts(title, [("input", transform_text(config)), *left_out(found), *evaluation_facts(result, against)])
    if corrupted:
        table = corrupted_table(corrupted)
        caption = None if against is None else f"the other: {against}"
        print_table("corrupted images", table.columns, table.texts(), right=True, caption=caption)
