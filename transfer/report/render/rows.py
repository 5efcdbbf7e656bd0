"""A table's rows with every text ready to print: what all formats iterate over."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transfer.report.cells import bracketed, difference, p_value, printed, rounded
from transfer.report.model import DIVERGED, INCOMPLETE, SEEDS, Cell, Column, Flag, Interval, Row, Table, Value


class Footnotes:
    """The letters of a table's flags, in reading order; the same flag on several cells has one letter."""

    def __init__(self, table: Table) -> None:
        groups = (flags for row in table.rows for flags in (row.flags, *(cell.flags for cell in row.cells.values())))
        flags = dict.fromkeys(itertools.chain.from_iterable(groups))
        sizes = (itertools.product(string.ascii_lowercase, repeat=size) for size in itertools.count(1))
        names = map("".join, itertools.chain.from_iterable(sizes))
        self.letters: dict[Flag, str] = dict(zip(flags, names, strict=False))

    def of(self, flags: Iterable[Flag]) -> str:
        """The letters of these flags: `a,c`."""
        return ",".join(self.letters[flag] for flag in flags)

    def lines(self) -> list[tuple[str, str]]:
        """(letter, `kind: text`) for every flag."""
        return [(letter, f"{flag.kind}: {flag.text}") for flag, letter in self.letters.items()]


@dataclass(frozen=True)
class RenderedValue:
    """One metric of one cell.

    Attributes:
        value: the numbers.
        text: the mean's digits, or what is printed in its place.
        std: the standard deviation's digits; empty without one.
        paper: the published digits or text beside a result; empty in a published row.
        away: the difference of the printed digits, if the two compare.
        interval: the mean's interval that covers test images; empty without one.
        against: the comparison with the chosen row: difference, interval, p, what it could see, n; empty without one.
    """

    value: Value
    text: str
    std: str
    paper: str
    away: str
    interval: str
    against: list[str]


@dataclass(frozen=True)
class RenderedCell:
    """A row's values on one column.

    Attributes:
        column: the column.
        cell: None if the row has no trials, and waits for none, on this column; then there are no values.
        values: one for each metric of the column.
        count: the number of trials: `5`, or `3/5` if there are fewer than requested; empty in a published row.
        letters: of the cell's flags.
    """

    column: Column
    cell: Cell | None
    values: list[RenderedValue]
    count: str
    letters: str


@dataclass(frozen=True)
class RenderedRow:
    """A row.

    Attributes:
        row: the row.
        heading: the heading that starts with this row; empty if none does.
        letters: of the row's own flags.
        cells: one for each column.
    """

    row: Row
    heading: str
    letters: str
    cells: list[RenderedCell]


def render_rows(table: Table, notes: Footnotes | None = None) -> Iterator[RenderedRow]:
    """The rows of a table.

    Args:
        table: the table.
        notes: its footnotes, for formats that print letters.
    """
    group: str | None = None
    for row in table.rows:
        heading = row.group if row.group and row.group != group else ""
        group = row.group
        letters = notes.of(row.flags) if notes else ""
        yield RenderedRow(row, heading, letters, [_render_cell(row, column, notes) for column in table.columns])


def compared_rows(table: Table) -> list[RenderedRow]:
    """The rows that are compared with the chosen row."""
    rows = render_rows(table) if table.against else ()
    return [row for row in rows if any(value.value.against for cell in row.cells for value in cell.values)]


def verdicts(table: Table) -> dict[str, list[str]]:
    """Column's label to a sentence for each row that was, or should have been, compared with the chosen row."""
    found: dict[str, list[str]] = {}
    for column, row in itertools.product(table.columns, table.rows):
        if cell := row.cells.get(column.key):
            compared = cell.values[column.primary].against
            refused = f"{row.label} is not compared: {cell.not_compared}." if cell.not_compared else ""
            if text := compared.sentence if compared else refused:
                found.setdefault(column.label, []).append(text)
    return found


def _render_cell(row: Row, column: Column, notes: Footnotes | None) -> RenderedCell:
    cell = row.cells.get(column.key)
    if cell is None:
        return RenderedCell(column, None, [], "", "")
    fewer = cell.requested is not None and cell.n < cell.requested
    count = f"{cell.n}/{cell.requested}" if fewer else str(cell.n)
    return RenderedCell(
        column,
        cell,
        [_render_value(cell, cell.values[metric], row.published) for metric in column.metrics],
        "" if row.published else count,
        notes.of(cell.flags) if notes else "",
    )


def _render_value(cell: Cell, value: Value, published: bool) -> RenderedValue:
    away = ""
    if value.difference is not None and value.mean is not None and value.published is not None:
        away = difference(value.mean, value.published)
    return RenderedValue(
        value=value,
        text=printed(value.mean) if value.mean is not None else _missing(cell, value),
        std=printed(value.std),
        paper="" if published else value.published_text or printed(value.published),
        away=away,
        interval=_shown(value.interval),
        against=_describe_comparison(cell, value),
    )


def _missing(cell: Cell, value: Value) -> str:
    """What is printed in place of a mean: `diverged`, `mixed`, `-` without a trial."""
    if value.published_text and not cell.trials:
        return value.published_text
    if cell.n:
        return "mixed"
    return "diverged" if cell.has(DIVERGED) and not cell.has(INCOMPLETE) else "-"


def _describe_comparison(cell: Cell, value: Value) -> list[str]:
    found = value.against
    if found is None:
        return ["not compared", ""] if cell.not_compared else []
    interval = bracketed(found.low, found.high, "+")
    sees = f"sees {printed(found.detectable)}" if found.detectable is not None else ""
    return [f"{rounded(found.difference):+}", interval, p_value(found.p_holm), sees, f"n {found.n} vs {found.n_other}"]


def _shown(interval: Interval | None) -> str:
    """An interval beside a mean; one that covers seeds alone would look like more than the std beside it."""
    return bracketed(interval.low, interval.high) if interval and interval.covers != SEEDS else ""
