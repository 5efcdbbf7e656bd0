"""A report's tables as CSV: one line a row, one column a figure; tables one below the other."""

from __future__ import annotations

import csv
import io

from transfer.report.digits import printed
from transfer.report.model import Cell, Column, Report, Row, Table
from transfer.report.render.footnotes import kinds, mean_text


def render(report: Report) -> str:
    """The tables; a blank line between two of them."""
    return "\n".join(_table(table) for table in report.tables)


def _table(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["layout", "row", "label", *(head for column in table.columns for head in _heads(column)), "row marks"]
    )
    for row in table.rows:
        figures = [figure for column in table.columns for figure in _figures(row, column)]
        writer.writerow([table.layout, row.key, row.label, *figures, _marks(row)])
    return text.getvalue()


def _heads(column: Column) -> list[str]:
    heads = []
    for metric in column.metrics:
        name = f"{column.key}.{metric}"
        heads += [name, f"{name} std", f"{name} published", f"{name} difference", f"{name} bold"]
    return [*heads, f"{column.key} n", f"{column.key} asked", f"{column.key} split", f"{column.key} marks"]


def _figures(row: Row, column: Column) -> list[str]:
    cell = row.cells.get(column.key)
    if cell is None:
        return [""] * (5 * len(column.metrics) + 4)
    words = []
    for metric in column.metrics:
        value = cell.values[metric]
        words += [
            mean_text(cell, value),
            printed(value.std),
            value.word or printed(value.published),
            printed(value.difference),
            "bold" if value.bold else "",
        ]
    if row.published:
        return [*words, "", "", column.head, "published"]
    return [*words, str(cell.n), "" if cell.asked is None else str(cell.asked), column.head, _cell_marks(cell)]


def _cell_marks(cell: Cell) -> str:
    by_kind = {kind: [mark.text for mark in cell.marks if mark.kind == kind] for kind in kinds(cell)}
    return "; ".join(f"{kind} ({'; '.join(texts)})" for kind, texts in by_kind.items())


def _marks(row: Row) -> str:
    return "; ".join(f"{mark.kind} ({mark.text})" for mark in row.marks)
