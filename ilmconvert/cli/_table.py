"""The tables that commands print. Numbers in them are formatted by :mod:`ilmconvert.report.text`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: bool = False,
    caption: str | None = None,
) -> None:
    """A table with a heading for every column; ``right`` aligns all but the first to the right, as for numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if right and index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_facts(title: str, rows: Iterable[tuple[str, str | None]]) -> None:
    """A label and a text in every row, without those that have none. Brackets are text, no markup of rich."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in rows:
        if text is not None:
            table.add_row(escape(label), escape(text))
    Console().print(table)
