"""A report as one self-contained HTML page: no network, no other file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from ssl_transfer.console import as_typed
from transfer.report.cells import printed
from transfer.report.figures.per_class import ClassTable, class_tables
from transfer.report.model import Report, Row, Table
from transfer.report.render import csv, facts, latex, pictures
from transfer.report.render.headline import headline
from transfer.report.render.paths import PathShortener
from transfer.report.render.rows import Footnotes, RenderedCell, RenderedRow, compared_rows, render_rows, verdicts


@dataclass(frozen=True)
class TableView:
    """A table and all that the template prints of it.

    Attributes:
        table: the table.
        rows: its rows, with every text ready to print.
        notes: the flags' letters.
        other: label of the row that the others are compared with.
        compared: the rows that are compared with it.
        verdicts: each comparison in a sentence, by the column's label.
        classes: AP per class, by column.
        details: the provenance of the cells.
    """

    table: Table
    rows: list[RenderedRow]
    notes: Footnotes
    other: str
    compared: list[RenderedRow]
    verdicts: dict[str, list[str]]
    classes: list[ClassTable]
    details: list[facts.CellDetails]

    @property
    def has_published(self) -> bool:
        """Whether a published value is printed beside a result."""
        return any(value.paper for row in self.rows for cell in row.cells for value in cell.values)

    @property
    def has_intervals(self) -> bool:
        """Whether an interval is printed beside a result."""
        return any(value.interval for row in self.rows for cell in row.cells for value in cell.values)

    def link(self, row: Row, cell: RenderedCell) -> str:
        """The id of a cell's provenance; empty if it has none."""
        has_details = cell.cell is not None and (cell.cell.trials or cell.cell.waiting)
        return facts.details_id(self.table, row, cell.column) if has_details else ""


def render(report: Report) -> str:
    """Render the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(facts.FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if report.show_machine else PathShortener(report),
    )
    environment.filters |= {
        "as_typed": as_typed,
        "printed": printed,
        "duration": facts.duration,
        "by_section": facts.by_section,
    }
    costs = facts.cost_lines(report)
    plots = groupby(pictures.plot_pictures(report), lambda picture: picture.plot.section)
    return environment.get_template("page.html.j2").render(
        report=report,
        views=[_view(table, report) for table in report.tables],
        plots={section: list(group) for section, group in plots},
        predictions=pictures.predictions(report),
        costs=costs,
        gpu_hours=facts.sum_known(line.gpu_hours for line in costs),
        environments=facts.environments(report),
        headline=headline(report),
        summary=facts.summary(report),
        copies={"LaTeX": latex.render(report), "CSV": csv.render(report), "long CSV": csv.render_long(report)},
        css=(facts.FOLDER / "page.css").read_text(),
        js=(facts.FOLDER / "page.js").read_text(),
    )


def _view(table: Table, report: Report) -> TableView:
    notes = Footnotes(table)
    return TableView(
        table=table,
        rows=list(render_rows(table, notes)),
        notes=notes,
        other=next((row.label for row in table.rows if row.key == table.against), ""),
        compared=compared_rows(table),
        verdicts=verdicts(table),
        classes=class_tables(table),
        details=facts.cell_details(table, report),
    )
