"""The published table's rule for bold entries: within a margin below the best of the column, on the printed digits."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from transfer.report.digits import rounded
from transfer.report.model import NOT_COMPARABLE, TOY, UNLIKE, Cell, Column, Row

OUTSIDE = (TOY, NOT_COMPARABLE, UNLIKE)


def embolden(rows: list[Row], columns: list[Column], within: float | None) -> list[Row]:
    """The rows with `bold` set; unchanged where the table has no rule (`within` is None).

    A cell that compares with nothing (toy, not comparable, unlike its column) contends only where no other cell of the
    column compares. A single contender is not bold: it is best of nothing.
    """
    if within is None:
        return rows
    for column in columns:
        for metric in column.metrics:
            rows = _column(rows, column.key, metric, Decimal(str(within)))
    return rows


def _column(rows: list[Row], key: str, metric: str, within: Decimal) -> list[Row]:
    means = {i: mean for i, row in enumerate(rows) if (mean := _mean(row.cells.get(key), metric)) is not None}
    fair = {i for i in means if not any(rows[i].cells[key].has(kind) for kind in OUTSIDE)}
    contenders = {i: rounded(means[i]) for i in (fair or means)}
    if len(contenders) < 2:
        return rows
    floor = max(contenders.values()) - within
    bold = {i for i, value in contenders.items() if value >= floor}
    return [_emboldened(row, key, metric) if i in bold else row for i, row in enumerate(rows)]


def _mean(cell: Cell | None, metric: str) -> float | None:
    return cell.values[metric].mean if cell and metric in cell.values else None


def _emboldened(row: Row, key: str, metric: str) -> Row:
    cell = row.cells[key]
    values = {**cell.values, metric: replace(cell.values[metric], bold=True)}
    return replace(row, cells={**row.cells, key: replace(cell, values=values)})
