"""Tables for the template: every text ready to print, every figure with its sort key and its link."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.report.digits import difference, p_value, printed, rounded, with_std
from transfer.report.figures import classes
from transfer.report.figures.plot import slug
from transfer.report.model import Cell, Column, Row, Table, Value
from transfer.report.render.footnotes import Footnotes, count, kinds, missing


@dataclass(frozen=True)
class Figure:
    """One metric of one cell: `sort` is its sort key, empty where there is no mean."""

    metric: str
    text: str
    std: str
    bold: bool
    sort: str
    paper: str
    away: str
    outlier: bool


@dataclass(frozen=True)
class Group:
    """A row's figures on one column, its count and marks; `link` is the id of its provenance, empty without trials."""

    column: Column
    link: str
    figures: list[Figure]
    count: str
    marks: list[tuple[str, str]]


@dataclass(frozen=True)
class Line:
    """A row; `groups` holds None where the row has nothing to do with the column."""

    row: Row
    letters: list[str]
    groups: list[Group | None]


def detail_id(table: Table, row: Row, column: Column) -> str:
    """The id of a cell's provenance on the page."""
    return f"cell-{slug(table.layout)}-{slug(row.key)}-{slug(column.key)}"


def lines(table: Table, notes: Footnotes) -> list[Line]:
    """The table's rows for the template."""
    return [Line(row, notes.of(row.marks), [_group(table, row, c, notes) for c in table.columns]) for row in table.rows]


def _group(table: Table, row: Row, column: Column, notes: Footnotes) -> Group | None:
    cell = row.cells.get(column.key)
    if cell is None:
        return None
    marks = [(kind, ",".join(notes.of(m for m in cell.marks if m.kind == kind))) for kind in kinds(cell)]
    return Group(
        column=column,
        link=detail_id(table, row, column) if cell.trials or cell.waiting else "",
        figures=[_figure(cell, cell.values[metric], row.published) for metric in column.metrics],
        count="" if row.published else count(cell),
        marks=marks,
    )


def _figure(cell: Cell, value: Value, published: bool) -> Figure:
    away = ""
    if value.difference is not None and value.mean is not None and value.published is not None:
        away = difference(value.mean, value.published)
    return Figure(
        metric=value.metric,
        text=printed(value.mean) if value.mean is not None else missing(cell, value),
        std=printed(value.std),
        bold=value.bold,
        sort="" if value.mean is None else repr(value.mean),
        paper="" if published else value.word or printed(value.published),
        away=away,
        outlier=bool(value.outliers),
    )


def comparison(table: Table) -> list[tuple[str, list[list[str]]]]:
    """(label, for each column and metric: difference, interval, p, n vs n) of every compared row."""
    found = []
    for row in table.rows:
        words = [_against(row, column, metric) for column in table.columns for metric in column.metrics]
        if any(words):
            found.append((row.label, words))
    return found


def _against(row: Row, column: Column, metric: str) -> list[str]:
    cell = row.cells.get(column.key)
    found = cell.values[metric].against if cell else None
    if found is None:
        return []
    both = found.low is not None and found.high is not None
    interval = f"[{rounded(found.low):+}, {rounded(found.high):+}]" if both else ""  # type: ignore[arg-type]
    return [f"{rounded(found.difference):+}", interval, f"p {p_value(found.p)}", f"n {found.n} vs {found.n_other}"]


def class_tables(table: Table) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """(column's label, row labels, for each class its name and figures) of every column with AP per class."""
    made = []
    for column in table.columns:
        found = classes.by_row(table, column)
        if found:
            names = sorted({name for _, values in found for name in values})
            body = [(name, [printed(values.get(name), "-") for _, values in found]) for name in names]
            made.append((column.label, [row.label for row, _ in found], body))
    return made


def trial_figures(column: Column, trial_metrics: dict[str, dict[str, float]]) -> str:
    """A trial's metrics on a column as one text: `AP50 75.5, AP 47.0, AP75 50.2`."""
    values = trial_metrics.get(column.branch, {})
    return ", ".join(f"{metric} {with_std(values.get(metric), None)}" for metric in column.metrics if metric in values)
