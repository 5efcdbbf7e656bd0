"""Collected results → tables in the published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.errors import UserError, nearest
from transfer.report import alike, cells, grouping, statistics
from transfer.report.bold import embolden
from transfer.report.expected import LAYOUTS, Expected, ExpectedTask, load
from transfer.report.grouping import Group, Groups
from transfer.report.model import MIXED, NOT_COMPARABLE, TOY, UNLIKE, Cell, Column, Mark, Report, Row, Table, Value
from transfer.report.records import Collection, RowInfo

BESIDE, ROWS, NONE = "beside", "rows", "none"


@dataclass(frozen=True)
class Options:
    """What the user asked of the table.

    Attributes:
        layout: `auto`, or one of the published layouts.
        published: `beside` each mean, as `rows` of their own too, or `none`.
        allow_toy: show toys beside real or published results all the same, marked.
        against: key of the row to compare with; `auto` takes scratch where there is one; None compares nothing.
        expect: row key to the published row beside it, over what the experiment says.
        sort: `COLUMN.METRIC` to sort rows by, best first; None keeps the order.
    """

    layout: str = "auto"
    published: str = BESIDE
    allow_toy: bool = False
    against: str | None = "auto"
    expect: Mapping[str, str] = field(default_factory=dict)
    sort: str | None = None


def report(found: Collection, options: Options) -> Report:
    """All tables the collection fills, and what belongs to them.

    Raises:
        UserError: toys beside real results, or an unknown row, column or published key in the options.
    """
    _check(found, options)
    toys_alone = bool(found.trials) and not options.allow_toy and all(trial.toy for trial in found.trials)
    show = NONE if toys_alone else options.published
    layouts = grouping.layouts(found, options.expect) if options.layout == "auto" else [options.layout]
    tables = [_table(found, load(layout), options, show) for layout in layouts]
    if options.against not in (None, "auto") and not any(t.against for t in tables):
        keys = [row.key for table in tables for row in table.rows if not row.published]
        raise UserError(f"--against {options.against}: no such row; {nearest(str(options.against), keys)}")
    return Report(
        title=found.title or (tables[0].title if len(tables) == 1 else "Results"),
        tables=tuple(tables),
        trials=tuple(found.trials),
        pretraining=tuple(found.pretraining),
        searches=tuple(found.searches),
        skipped=tuple(found.skipped),
        runs=tuple(found.runs),
        notes=tuple(_report_notes(found, toys_alone)),
    )


def _check(found: Collection, options: Options) -> None:
    toys = [trial for trial in found.trials if trial.toy]
    if toys and not options.allow_toy:
        if len(toys) < len(found.trials):
            raise UserError(
                f"{len(toys)} of {len(found.trials)} results are toy ({toys[0].source}, …): they do not stand beside "
                "real ones; leave their folder out, or give --allow-toy to show them, marked"
            )
        if options.published == ROWS:
            raise UserError(
                "these results are toy: published rows do not stand beside them; give --allow-toy to show both, marked"
            )
    published = [key for layout in LAYOUTS for key in load(layout).rows] if options.expect else []
    for row, key in options.expect.items():
        if row not in found.rows:
            raise UserError(f"--expect {row}={key}: no such row; {nearest(row, found.rows)}")
        if key not in published:
            raise UserError(f"--expect {row}={key}: no such published row; {nearest(key, published)}")


def _report_notes(found: Collection, toys_alone: bool) -> list[str]:
    notes = []
    if toys_alone:
        notes.append("All results are toy: no published number stands beside them (--allow-toy shows them).")
    if found.pretraining and not found.trials and not found.asked:
        runs = ", ".join(f"{run.name} ({run.status})" for run in found.pretraining)
        notes.append(f"Pre-training alone, so no table: {runs}. Plots (--plots DIR) show its curves.")
    if found.superseded:
        notes.append(f"{found.superseded} result(s) of earlier settings lie in the run folder and are not current.")
    return notes


def _table(found: Collection, expected: Expected, options: Options, show: str) -> Table:
    groups = grouping.group(found, expected, options.layout, options.expect)
    columns = grouping.columns(groups, found, expected) or grouping.published_columns(expected)
    infos = grouping.row_infos(found, groups, expected, options.expect)
    rows = [_row(info, columns, groups, expected, show) for info in infos]
    rows = _mark_unlike(rows, columns)
    if show == ROWS:
        rows = _published_rows(expected, columns) + rows
    rows = embolden(rows, columns, expected.bold_within)
    against = _against(rows, options)
    if against:
        rows = _compared(rows, columns, against)
    if options.sort:
        rows = _sorted(rows, columns, options.sort)
    return Table(
        layout=expected.layout,
        title=expected.title,
        source=expected.source,
        row_head=expected.row_head,
        bold_within=expected.bold_within,
        columns=tuple(columns),
        rows=tuple(rows),
        notes=_notes(expected, columns, rows, show),
        against=against,
    )


def _row(info: RowInfo, columns: Sequence[Column], groups: Groups, expected: Expected, show: str) -> Row:
    made = {}
    for column in columns:
        place = groups.get((info.key, column.task))
        if place is None:
            continue
        beside = cells.published(expected, info.expected, column) if show != NONE else cells.NOTHING
        facts = expected.tasks.get(column.task, ExpectedTask())
        made[column.key] = cells.build(
            place.trials, column, facts, beside, _asked(place, info, column, expected), place.waiting
        )
    known = expected.rows.get(info.expected or "")
    return Row(
        info.key, info.label, info.expected, False, made, _row_marks(made, expected), known.group if known else None
    )


def _asked(place: Group, info: RowInfo, column: Column, expected: Expected) -> int | None:
    """How many trials the place should have: the experiment's count, else the published one (toys have none)."""
    if place.asked is not None:
        return place.asked
    known = expected.column_of(column.task, column.branch)
    if known is None or any(trial.toy for trial in place.trials):
        return None
    row = expected.rows.get(info.expected or "")
    return row.trials if row and row.trials else known.trials


def _row_marks(made: Mapping[str, Cell], expected: Expected) -> tuple[Mark, ...]:
    if expected.layout != "table5":
        return ()
    found = alike.unlike_across({key: cell.counted for key, cell in made.items()})
    return tuple(Mark(MIXED, f"the row's columns differ in {text}") for text in found)


def _mark_unlike(rows: list[Row], columns: Sequence[Column]) -> list[Row]:
    """Mark the cells whose schedule, evaluator or split is another than most of their column's that compare."""
    for column in columns:
        found = {row.key: row.cells[column.key] for row in rows if column.key in row.cells}
        inside = {key: cell.counted for key, cell in found.items()}
        fair = {key: cell.counted for key, cell in found.items() if not cell.has(TOY) and not cell.has(NOT_COMPARABLE)}
        norms = alike.column_norms(fair if any(fair.values()) else inside)
        rows = [_marked(row, column.key, alike.unlike_column(inside.get(row.key, ()), norms)) for row in rows]
    return rows


def _marked(row: Row, key: str, differences: Sequence[str]) -> Row:
    if not differences:
        return row
    cell = row.cells[key]
    marks = (*cell.marks, Mark(UNLIKE, "; ".join(differences)))
    return replace(row, cells={**row.cells, key: replace(cell, marks=marks)})


def _published_rows(expected: Expected, columns: Sequence[Column]) -> list[Row]:
    rows = []
    for row in expected.rows.values():
        made = {column.key: cell for column in columns if (cell := _published_cell(expected, row.key, column))}
        if made:
            rows.append(Row(f"published:{row.key}", f"{row.label} (published)", row.key, True, made, group=row.group))
    return rows


def _published_cell(expected: Expected, row: str, column: Column) -> Cell | None:
    found = cells.published(expected, row, column)
    if not found.values:
        return None
    values = {m: Value(m, found.values.get(m), found.stds.get(m), word=found.word) for m in column.metrics}
    return Cell((), (), None, (), (), values)


def _against(rows: Sequence[Row], options: Options) -> str | None:
    if options.against == "auto":
        return next((row.key for row in rows if not row.published and "scratch" in (row.key, row.expected)), None)
    return next((row.key for row in rows if not row.published and row.key == options.against), None)


def _compared(rows: list[Row], columns: Sequence[Column], against: str) -> list[Row]:
    other = next(row for row in rows if row.key == against)
    return [row if row is other or row.published else _compared_row(row, other, columns) for row in rows]


def _compared_row(row: Row, other: Row, columns: Sequence[Column]) -> Row:
    """The row with each value compared with the other row's, unless either is mixed or unlike its column."""
    made = dict(row.cells)
    for column in columns:
        here, there = made.get(column.key), other.cells.get(column.key)
        if here is None or there is None or any(cell.has(kind) for cell in (here, there) for kind in (MIXED, UNLIKE)):
            continue
        values = {}
        for metric, value in here.values.items():
            a, b = cells.samples(here, column.branch, metric), cells.samples(there, column.branch, metric)
            values[metric] = replace(value, against=statistics.compare(a, b, other.key))
        made[column.key] = replace(here, values=values)
    return replace(row, cells=made)


def _sorted(rows: list[Row], columns: Sequence[Column], sort: str) -> list[Row]:
    key, _, metric = sort.rpartition(".")
    valid = [f"{column.key}.{m}" for column in columns for m in column.metrics]
    if sort not in valid:
        raise UserError(f"--sort {sort}: no such column; {nearest(sort, valid)}")

    def rank(row: Row) -> tuple[bool, float]:
        cell = row.cells.get(key)
        mean = cell.values[metric].mean if cell else None
        return (mean is None, -(mean or 0.0))

    return sorted(rows, key=rank)


def _notes(expected: Expected, columns: Sequence[Column], rows: Sequence[Row], show: str) -> tuple[str, ...]:
    notes = []
    if expected.bold_within is not None:
        notes.append(f"Bold: within {expected.bold_within} below the best of its column.")
    if show == NONE:
        return tuple(notes)
    notes.append(f"Published: {expected.source}.")
    tasks = dict.fromkeys(column.task for column in columns)
    notes += [note for task in tasks if (note := expected.tasks.get(task, ExpectedTask()).note)]
    shown = [expected.rows[key] for key in dict.fromkeys(row.expected for row in rows) if key and key in expected.rows]
    notes += [f"{row.label}: {row.note}" for row in shown if row.note and expected.layout != "ablations"]
    notes += [f"{row.label}: {row.source}" for row in shown if row.source]
    return tuple(notes)
