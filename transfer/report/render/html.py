"""A report as one self-contained HTML page: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from transfer.report.cells import printed
from transfer.report.figures.classes import class_tables
from transfer.report.figures.style import CLASSES, FINETUNING, PRETRAINING, SEARCH, TRIALS
from transfer.report.model import Report, Table
from transfer.report.render import facts, pictures
from transfer.report.render.rows import Footnotes, RenderedCell, RenderedRow, compared_rows, render_rows

FOLDER = Path(__file__).resolve().parent / "page"


@dataclass(frozen=True)
class TableView:
    """A table and all that the template prints of it.

    Attributes:
        table: the table.
        rows: its rows, with every text ready to print.
        notes: the flags' letters.
        links: (row key, column key) to the id of the cell's provenance, if it has any.
        other: label of the row that the others are compared with.
        compared: the rows that are compared with it.
        classes: (column label, row labels, for each class its name and figures).
        details: the provenance of the cells.
    """

    table: Table
    rows: list[RenderedRow]
    notes: Footnotes
    links: Mapping[tuple[str, str], str]
    other: str
    compared: list[RenderedRow]
    classes: list[tuple[str, list[str], list[tuple[str, list[str]]]]]
    details: list[facts.CellDetails]

    @property
    def has_published(self) -> bool:
        """Whether a published value is printed beside a result."""
        return any(value.paper for row in self.rows for cell in row.cells for value in cell.values)

    def flags(self, cell: RenderedCell) -> list[tuple[str, str]]:
        """Kind and letters of a cell's flags."""
        flags = cell.cell.flags if cell.cell else []
        kinds = dict.fromkeys(flag.kind for flag in flags)
        return [(kind, self.notes.of(flag for flag in flags if flag.kind == kind)) for kind in kinds]


def render(report: Report) -> str:
    """Render the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    costs = facts.cost_lines(report)
    plots = groupby(pictures.plot_pictures(report), lambda picture: picture.plot.section)
    return environment.get_template("page.html.j2").render(
        report=report,
        views=[_view(table, report) for table in report.tables],
        plots={section: list(group) for section, group in plots},
        sections={
            "trials": TRIALS,
            "pretraining": PRETRAINING,
            "finetuning": FINETUNING,
            "classes": CLASSES,
            "search": SEARCH,
        },
        predictions=pictures.predictions(report),
        costs=costs,
        gpu_hours=facts.sum_known(line.gpu_hours for line in costs),
        environments=facts.environments(report),
        css=(FOLDER / "page.css").read_text(),
        js=(FOLDER / "page.js").read_text(),
    )


def _view(table: Table, report: Report) -> TableView:
    notes = Footnotes(table)
    classes = []
    for found in class_tables(table):
        body = [(name, [printed(values.get(name), "-") for _, values in found.rows]) for name in found.names]
        classes.append((found.column.label, [row.label for row, _ in found.rows], body))
    return TableView(
        table=table,
        rows=list(render_rows(table, notes)),
        notes=notes,
        links={
            (row.key, key): facts.details_id(table, row, column)
            for row in table.rows
            for column in table.columns
            if (cell := row.cells.get(key := column.key)) and (cell.trials or cell.waiting)
        },
        other=next((row.label for row in table.rows if row.key == table.against), ""),
        compared=compared_rows(table),
        classes=classes,
        details=facts.cell_details(table, report),
    )
