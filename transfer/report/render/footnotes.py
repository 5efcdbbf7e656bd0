"""Marks as letters in the cells and lines below the table; the same mark on several cells shares its letter."""

from __future__ import annotations

from collections.abc import Iterable

from transfer.report.digits import printed
from transfer.report.model import DIVERGED, INCOMPLETE, Cell, Mark, Table, Value


class Footnotes:
    """The letters of a table's marks, in reading order."""

    def __init__(self, table: Table) -> None:
        self.letters: dict[Mark, str] = {}
        for row in table.rows:
            self._add(row.marks)
            for column in table.columns:
                if column.key in row.cells:
                    self._add(row.cells[column.key].marks)

    def _add(self, marks: Iterable[Mark]) -> None:
        for mark in marks:
            self.letters.setdefault(mark, _letter(len(self.letters)))

    def of(self, marks: Iterable[Mark]) -> list[str]:
        """The letters of these marks."""
        return [self.letters[mark] for mark in marks]

    def lines(self) -> list[tuple[str, str]]:
        """(letter, `kind: text`) for every mark."""
        return [(letter, f"{mark.kind}: {mark.text}") for mark, letter in self.letters.items()]


def count(cell: Cell) -> str:
    """`5`, or `3/5` where the experiment asks for more than there are."""
    return f"{cell.n}/{cell.asked}" if cell.asked is not None and cell.n < cell.asked else str(cell.n)


def kinds(cell: Cell) -> list[str]:
    """The cell's kinds of marks, each once; `incomplete` is told by the count."""
    return list(dict.fromkeys(mark.kind for mark in cell.marks))


def missing(cell: Cell, value: Value) -> str:
    """What stands where a mean would: `diverged`, `mixed`, `-` where there is no trial yet."""
    if value.word and not cell.trials:
        return value.word
    if cell.n:
        return "mixed"
    return "diverged" if cell.has(DIVERGED) and not cell.has(INCOMPLETE) else "-"


def mean_text(cell: Cell, value: Value) -> str:
    """The mean's digits, or what stands in its place."""
    return printed(value.mean) if value.mean is not None else missing(cell, value)


def _letter(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters
