"""Tables as HTML, for the reports and for notebooks. All text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from ilmconvert.report.text import NONE


@dataclass(frozen=True)
class Cell:
    """A text, a smaller one below it, and the classes of the page's style sheet."""

    text: str
    more: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A heading for every column, and rows of texts. In a template ``{{ table }}`` is its HTML.

    Attributes:
        columns: the headings; if all are empty there is no row of them.
        rows: as many cells each.
        numbers: from which column on cells are numbers, and lie to the right.
        marked: the row that stands out, or None.

    >>> print(Table(("layer", "C"), [("<stem>", "64")], numbers=1).__html__())
    <div class="table"><table>
    <thead><tr><th scope="col">layer</th><th scope="col" class="num">C</th></tr></thead>
    <tbody>
    <tr><th scope="row">&lt;stem&gt;</th><td class="num">64</td></tr>
    </tbody></table></div>
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: int = 1_000
    marked: int | None = None

    def without_empty_columns(self) -> Table:
        """The columns that say something in at least one row; the first stays.

        >>> Table(("network", "before", "after"), [("a", NONE, "1"), ("b", "", NONE)]).without_empty_columns().columns
        ('network', 'after')
        """
        kept = [
            i for i in range(len(self.columns)) if i == 0 or any(_text(row[i]) not in ("", NONE) for row in self.rows)
        ]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        numbers = sum(i < self.numbers for i in kept)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows, numbers=numbers)

    def texts(self) -> list[tuple[str, ...]]:
        """The rows as texts alone."""
        return [tuple(_text(cell) for cell in row) for row in self.rows]

    def __html__(self) -> Markup:
        return self.html()

    def html(self, *, inline: bool = False) -> Markup:
        """The table as HTML; with ``inline`` styles where there is no style sheet, as in notebooks."""
        heads = Markup().join(
            Markup('<th scope="col"{}>{}</th>').format(self._kind(i, inline=inline), name)
            for i, name in enumerate(self.columns)
        )
        head = Markup("<thead><tr>{}</tr></thead>\n").format(heads) if any(self.columns) else Markup()
        body = Markup().join(
            Markup("<tr{}>{}</tr>\n").format(
                Markup(' class="own"') if at == self.marked else "",
                Markup().join(self._cell(i, cell, inline) for i, cell in enumerate(row)),
            )
            for at, row in enumerate(self.rows)
        )
        return Markup('<div class="table"><table>\n{}<tbody>\n{}</tbody></table></div>').format(head, body)

    def _cell(self, index: int, cell: str | Cell, inline: bool) -> Markup:
        cell = cell if isinstance(cell, Cell) else Cell(cell)
        tag = Markup("<br><small>{}</small>") if inline else Markup('<span class="more">{}</span>')
        more = tag.format(cell.more) if cell.more else Markup()
        tag = Markup('<th scope="row"{}>{}{}</th>') if index == 0 else Markup("<td{}>{}{}</td>")
        return tag.format(self._kind(index, cell.kind, inline=inline), cell.text, more)

    def _kind(self, index: int, kind: str = "", *, inline: bool = False) -> Markup:
        is_number = index >= self.numbers
        if inline:
            return Markup(' style="text-align: {}"').format("right" if is_number else "left")
        classes = " ".join(filter(None, ("num" if is_number else "", kind)))
        return Markup(' class="{}"').format(classes) if classes else Markup()


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell
