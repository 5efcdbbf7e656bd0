"""A report's tables as CSV: a line for each row, tables one below the other; or in long form, a line for each value."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence

from transfer.report.cells import printed
from transfer.report.model import Cell, Column, Interval, Report, Table
from transfer.report.render.rows import RenderedCell, render_rows

SURE = ("low", "high", "covers", "against", "against low", "against high", "against p", "detectable", "against covers")
"""Columns of each metric at the end of a line: 95 % intervals, p adjusted for the rows, what the intervals cover."""


def render(report: Report) -> str:
    """Render the tables; a blank line between two of them."""
    return "\n".join(_table(table) for table in report.tables)


def render_long(report: Report) -> str:
    """Render the counted trials' metrics in long form: row, task, metric (`bbox/AP`), seed, value in per cent.

    `low` and `high` are the trial's own 95 % interval over test images; empty where it kept no detections.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "task", "metric", "seed", "value", "low", "high"])
    for table in report.tables:
        for row, column in itertools.product(table.rows, table.columns):
            cell = row.cells.get(column.key)
            if cell is None:
                continue
            for (index, trial), metric in itertools.product(enumerate(cell.counted), column.metrics):
                seed = "" if trial.seed is None else str(trial.seed)
                texts = [repr(trial.metrics[column.branch][metric]), *_own(cell.values[metric].trial_intervals, index)]
                writer.writerow(
                    map(_without_formula, [row.key, column.task, f"{column.branch}/{metric}", seed, *texts])
                )
    return text.getvalue()


def _table(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [head for column in table.columns for head in _heads(column)]
    names = [f"{column.key}.{metric}" for column in table.columns for metric in column.metrics]
    sure = [f"{name} {what}" for name in names for what in SURE]
    writer.writerow(map(_without_formula, ["layout", "row", "label", *heads, "row marks", *sure]))
    for line in render_rows(table):
        row = line.row
        figures = [figure for cell in line.cells for figure in _figures(cell, row.published)]
        flags = "; ".join(f"{flag.kind} ({flag.text})" for flag in row.flags)
        found = [row.cells.get(column.key) for column in table.columns for _ in column.metrics]
        metrics = [metric for column in table.columns for metric in column.metrics]
        sure = [text for cell, metric in zip(found, metrics, strict=True) for text in _sure(cell, metric)]
        writer.writerow(map(_without_formula, [table.layout, row.key, row.label, *figures, flags, *sure]))
    return text.getvalue()


def _own(intervals: Sequence[Interval | None], index: int) -> list[str]:
    own = intervals[index] if intervals else None
    return [repr(own.low), repr(own.high)] if own else ["", ""]


def _sure(cell: Cell | None, metric: str) -> list[str]:
    """The mean's interval, what it covers, and the comparison, in the order of SURE."""
    if cell is None:
        return [""] * len(SURE)
    own, against = cell.values[metric].interval, cell.values[metric].against
    texts = [printed(own.low), printed(own.high), own.covers] if own else ["", "", ""]
    if against is None:
        return [*texts, "", "", "", "", "", cell.not_compared]
    p = "" if against.p_holm is None else f"{against.p_holm:.4g}"
    numbers = (against.difference, against.low, against.high)
    return [*texts, *map(printed, numbers), p, printed(against.detectable), against.covers]


def _without_formula(cell: str) -> str:
    """Text as a spreadsheet shows it; a number keeps its sign."""
    is_formula = len(cell) > 1 and cell[0] in "=+-@\t\r" and not re.fullmatch(r"[-+]?[0-9.]+", cell)
    return f"'{cell}" if is_formula else cell


def _heads(column: Column) -> list[str]:
    heads = []
    for metric in column.metrics:
        name = f"{column.key}.{metric}"
        heads += [name, f"{name} std", f"{name} published", f"{name} difference", f"{name} bold"]
    return [*heads, f"{column.key} n", f"{column.key} asked", f"{column.key} split", f"{column.key} marks"]


def _figures(found: RenderedCell, is_published: bool) -> list[str]:
    cell, column = found.cell, found.column
    if cell is None:
        return [""] * len(_heads(column))
    texts = []
    for rendered in found.values:
        value = rendered.value
        paper = value.published_text or printed(value.published)
        bold = "bold" if value.bold else ""
        texts += [rendered.text, rendered.std, paper, printed(value.difference), bold]
    if is_published:
        return [*texts, "", "", column.head, "published"]
    requested = "" if cell.requested is None else str(cell.requested)
    kinds = cell.flags_by_kind.items()
    flags = "; ".join(f"{kind} ({'; '.join(flag.text for flag in flags)})" for kind, flags in kinds)
    return [*texts, str(cell.n), requested, column.head, flags]
