"""Collected results → tables in the published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ssl_transfer.errors import UserError, abbreviate, nearest
from transfer.report import cells
from transfer.report.cells import TOY_TEXT
from transfer.report.collection import DONE, Collection, RowInfo, transfer_command
from transfer.report.comparability import common_settings, differences_from_column, differences_within_row
from transfer.report.evidence import Evidence, compare_column
from transfer.report.grouping import Grouping, TrialGroup, is_linear, layouts_with_results
from transfer.report.model import MIXED, NOT_COMPARABLE, TOY, UNLIKE, Cell, Column, Flag, Report, Row, Table
from transfer.report.published import LAYOUTS, ExpectedTable, PublishedEntry, load_expected

BESIDE, ROWS, NONE = "beside", "rows", "none"
Cells = dict[str, Cell]
"""Row key to the row's cell of one column."""


@dataclass(frozen=True)
class Options:
    """The user's options.

    Attributes:
        layout: `auto`, or one of the published layouts.
        published: `beside` each mean, as `rows` of their own too, or `none`.
        allow_toy: show toys beside real or published results, flagged.
        against: key of the row to compare with; `auto` takes supervised if it has results, else scratch; None compares
            nothing.
        expect: row key to the published row to compare with, over what the experiment says.
        sort: `COLUMN.METRIC` to sort rows by, best first; None keeps the order.
        show_machine: the page names absolute paths and hosts as they were recorded.
        command: the command line that makes the report; empty if there is none.
    """

    layout: str = "auto"
    published: str = BESIDE
    allow_toy: bool = False
    against: str | None = "auto"
    expect: Mapping[str, str] = field(default_factory=dict)
    sort: str | None = None
    show_machine: bool = False
    command: str = ""


def build_report(found: Collection, options: Options) -> Report:
    """Build all tables that have results, and what belongs to them.

    Raises:
        UserError: toys beside real results, or an unknown row, column or published key in the options.
    """
    _check_options(found, options)
    toys_alone = bool(found.trials) and not options.allow_toy and all(trial.toy for trial in found.trials)
    show = NONE if toys_alone else options.published
    layouts = layouts_with_results(found, options.expect) if options.layout == "auto" else [options.layout]
    evidence = Evidence()
    tables = [_build_table(found, load_expected(layout), options, show, evidence) for layout in layouts]
    if options.against not in (None, "auto"):
        _check_against(str(options.against), tables)
    return Report(
        title=found.title or _title(found, tables),
        tables=tuple(tables),
        trials=tuple(found.trials),
        pretraining=tuple(found.pretraining),
        searches=tuple(found.searches),
        skipped=tuple(found.skipped),
        runs=tuple(found.runs),
        notes=tuple(_report_notes(found, toys_alone)),
        commands=tuple(filter(None, [*found.commands, options.command])),
        show_machine=options.show_machine,
    )


def _check_against(against: str, tables: Sequence[Table]) -> None:
    """Refuse a row that is not there, and one that nothing can be compared with."""
    if not any(table.against for table in tables):
        keys = [row.key for table in tables for row in table.rows if not row.published]
        raise UserError(f"--against {against}: no such row; {nearest(against, keys)}")
    found = [cell for table in tables for row in table.rows for cell in row.cells.values()]
    refused = [cell.not_compared for cell in found if cell.not_compared]
    if refused and not any(value.against for cell in found for value in cell.values.values()):
        raise UserError(f"--against {against}: nothing compares with it: {refused[0]}; name a row of the same test set")


def _title(found: Collection, tables: Sequence[Table]) -> str:
    """The title of results outside of experiments: after their folders; of published rows alone, the table's."""
    if not found.trials and len(tables) == 1:
        return tables[0].title
    names = [name for run in found.runs if (name := run.resolve().name)]
    return f"Results of {abbreviate(names)}" if names else "Results"


def _check_options(found: Collection, options: Options) -> None:
    toys = [trial for trial in found.trials if trial.toy]
    if toys and not options.allow_toy:
        if len(toys) < len(found.trials):
            raise UserError(
                f"{len(toys)} of {len(found.trials)} results are toy ({toys[0].source}, …) and do not compare with "
                "real ones; leave their folder out, or give --allow-toy to show them, flagged"
            )
        if options.published == ROWS:
            raise UserError(
                "these results are toy and do not compare with published rows; give --allow-toy to show both, flagged"
            )
    published = [key for layout in LAYOUTS for key in load_expected(layout).row_by_key] if options.expect else []
    for row, key in options.expect.items():
        if row not in found.rows:
            raise UserError(f"--expect {row}={key}: no such row; {nearest(row, found.rows)}")
        if key not in published:
            raise UserError(f"--expect {row}={key}: no such published row; {nearest(key, published)}")


def _report_notes(found: Collection, toys_alone: bool) -> list[str]:
    notes = []
    if toys_alone:
        notes.append("All results are toy: no published number is shown beside them (--allow-toy shows them).")
    elif toys := sum(trial.toy for trial in found.trials):
        notes.append(f"{toys} of {len(found.trials)} results are toy: {TOY_TEXT}. They are marked.")
    if found.pretraining and not found.trials and not found.requested:
        runs = ", ".join(f"{run.name} ({run.status})" for run in found.pretraining)
        notes.append(f"Pre-training alone, so no table: {runs}. Plots (--plots DIR) show its curves.")
    if found.superseded:
        notes.append(f"{found.superseded} result(s) of earlier settings lie in the run folder and are not current.")
    return notes


def _build_table(found: Collection, expected: ExpectedTable, options: Options, show: str, evidence: Evidence) -> Table:
    """Build the cells column by column, then every row once."""
    grouping = Grouping(found, expected, options.layout, options.expect)
    columns, infos = grouping.columns(), grouping.rows()
    against = _row_to_compare_with(infos, grouping, options)
    by_column: dict[str, Cells] = {}
    for column in columns:
        made = {
            info.key: _build_cell(group, info, column, expected, show)
            for info in infos
            if (group := grouping.groups.get((info.key, column.task)))
        }
        _flag_unlike(made)
        published = _published_cells(expected, column) if show == ROWS else {}
        by_column[column.key] = published | made
        if expected.bold_within is not None:
            cells.bold_best(by_column[column.key].values(), column.metrics, expected.bold_within)
        compare_column(made, against, column, evidence, {info.key: info.label for info in infos})
    rows = _build_rows(infos, by_column, expected)
    if options.sort:
        rows = _sort_rows(rows, columns, options.sort)
    return Table(
        layout=expected.layout,
        title=_table_title(expected, columns, rows if show != NONE else ()),
        source=expected.source,
        row_head=expected.row_head,
        bold_within=expected.bold_within,
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*_table_notes(expected, columns, rows, show), *_evidence_notes(found, rows, evidence)),
        against=against,
    )


def _table_title(expected: ExpectedTable, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The published table's title, if one of its columns and one of the rows that show its numbers are there."""
    has_column = any(expected.has_own(column.task) for column in columns)
    if has_column and any(row.expected in expected.row_by_key for row in rows):
        return expected.title
    return "Transfer to detection" if expected.layout == "table5" else "Linear evaluation"


def _build_cell(group: TrialGroup, info: RowInfo, column: Column, expected: ExpectedTable, show: str) -> Cell:
    entry = expected.entry(info.expected, column.task, column.branch)
    return cells.build_cell(
        group.trials,
        column,
        settings=expected.task(column.task).settings,
        published=entry if show != NONE else PublishedEntry(),
        requested=_requested_trials(group, info, column, expected),
        waiting=group.waiting,
    )


def _requested_trials(group: TrialGroup, info: RowInfo, column: Column, expected: ExpectedTable) -> int | None:
    """The number of trials that a cell should have: the experiment's, else the published one (none for toys)."""
    if group.requested is not None:
        return group.requested
    known = expected.column_of(column.task, column.branch)
    if known is None or any(trial.toy for trial in group.trials):
        return None
    row = expected.row_by_key.get(info.expected or "")
    return row.trials if row and row.trials else known.trials


def _flag_unlike(column_cells: Cells) -> None:
    """Flag the cells whose schedule, evaluator or split differs from most cells of their column that compare."""
    fair = [cell.counted for cell in column_cells.values() if not cell.has(TOY, NOT_COMPARABLE)]
    common = common_settings(fair if any(fair) else [cell.counted for cell in column_cells.values()])
    for cell in column_cells.values():
        if differences := differences_from_column(cell.counted, common):
            cell.flags.append(Flag(UNLIKE, "; ".join(differences)))


def _published_cells(expected: ExpectedTable, column: Column) -> Cells:
    """The published rows' cells of a column, by row key."""
    entries = {key: expected.entry(key, column.task, column.branch) for key in expected.row_by_key}
    return {f"published:{row}": cells.published_cell(entry, column) for row, entry in entries.items() if entry.values}


def _row_to_compare_with(infos: Sequence[RowInfo], grouping: Grouping, options: Options) -> str | None:
    if options.against == "auto":
        done = {row for (row, _), group in grouping.groups.items() if any(t.status == DONE for t in group.trials)}
        known = [(name, info.key) for info in infos if info.key in done for name in (info.key, info.expected)]
        return next((key for usual in ("supervised", "scratch") for name, key in known if name == usual), None)
    return next((info.key for info in infos if info.key == options.against), None)


def _build_rows(infos: Sequence[RowInfo], by_column: Mapping[str, Cells], expected: ExpectedTable) -> list[Row]:
    """The published rows, then the rows of results."""
    rows = []
    for row in expected.rows:
        key = f"published:{row.key}"
        if made := _cells_of(key, by_column):
            rows.append(Row(key, f"{row.label} (published)", row.key, True, made, group=row.group))
    for info in infos:
        made = _cells_of(info.key, by_column)
        known = expected.row_by_key.get(info.expected or "")
        group = known.group if known else None
        flags: tuple[Flag, ...] = ()
        if expected.layout == "table5":
            differences = differences_within_row({key: cell.counted for key, cell in made.items()})
            flags = tuple(Flag(MIXED, f"the row's columns differ in {text}") for text in differences)
        rows.append(Row(info.key, info.label, info.expected, False, made, flags, group))
    return rows


def _cells_of(row: str, by_column: Mapping[str, Cells]) -> Cells:
    """A row's cells by column key."""
    return {column: column_cells[row] for column, column_cells in by_column.items() if row in column_cells}


def _sort_rows(rows: list[Row], columns: Sequence[Column], sort: str) -> list[Row]:
    key, _, metric = sort.rpartition(".")
    valid = [f"{column.key}.{m}" for column in columns for m in column.metrics]
    if sort not in valid:
        raise UserError(f"--sort {sort}: no such column; {nearest(sort, valid)}")

    def rank(row: Row) -> tuple[bool, float]:
        cell = row.cells.get(key)
        mean = cell.values[metric].mean if cell else None
        return (mean is None, -(mean or 0.0))

    return sorted(rows, key=rank)


def _table_notes(expected: ExpectedTable, columns: Sequence[Column], rows: Sequence[Row], show: str) -> tuple[str, ...]:
    notes = []
    if expected.bold_within is not None:
        notes.append(f"Bold: within {expected.bold_within} below the best of its column.")
    if show == NONE:
        return tuple(notes)
    every = [(row, value) for row in rows for cell in row.cells.values() for value in cell.values.values()]
    if not any(row.published or value.published is not None or value.published_text for row, value in every):
        return tuple(notes)
    if any(expected.has_own(column.task) for column in columns):
        notes.append(f"Published: {expected.source}.")
    tasks = dict.fromkeys(column.task for column in columns)
    notes += [note for task in tasks if (note := expected.task(task).note)]
    keys = dict.fromkeys(row.expected for row in rows)
    shown = [expected.row_by_key[key] for key in keys if key and key in expected.row_by_key]
    notes += [f"{row.label}: {row.note}" for row in shown if row.note and expected.layout != "ablations"]
    notes += [f"{row.label}: {row.source}" for row in shown if row.source]
    return tuple(notes)


def _evidence_notes(found: Collection, rows: Sequence[Row], evidence: Evidence) -> list[str]:
    """Which trials have no interval of test images, and the command that makes what it needs."""
    counted = [trial for row in rows for cell in row.cells.values() for trial in cell.counted]
    trials = {id(trial): trial for trial in counted if not is_linear(trial.task)}.values()
    lacking = [trial for trial in trials if evidence.kept(trial) is None]
    if not lacking:
        return []
    searched = {(one.record.row, one.record.task) for one in found.searches}
    commands = (transfer_command(one, (one.row, one.task) in searched, evaluate=True) for one in lacking)
    command = next(filter(None, commands), "")
    reasons = [evidence.damaged[trial.source] for trial in lacking if trial.source in evidence.damaged]
    return [
        f"{len(lacking)} of {len(trials)} trials have no detections: intervals cover their seeds alone, or are missing."
        + (f" This makes a trial's, from its checkpoint: {command}" if command else ""),
        *(f"Detections not used: {reason}" for reason in reasons),
    ]
