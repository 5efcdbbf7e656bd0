"""A report as one self-contained HTML page: no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transfer.report.figures.plot import CLASSES, FINETUNING, PRETRAINING, SEARCH, TRIALS
from transfer.report.model import Report, Table
from transfer.report.page import costs, details, pictures, tables
from transfer.report.records import Search
from transfer.report.render.footnotes import Footnotes

FOLDER = Path(__file__).resolve().parents[1] / "page"


@dataclass(frozen=True)
class TableView:
    """A table and all the template prints of it."""

    table: Table
    lines: list[tables.Line]
    footnotes: list[tuple[str, str]]
    other: str
    comparison: list[tuple[str, list[list[str]]]]
    classes: list[Any]
    details: list[details.Detail]
    heads: list[tuple[str, str]]
    beside: bool


def render(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    lines = costs.costs(report)
    return template.render(
        report=report,
        views=[_view(table, report.searches) for table in report.tables],
        plots={section: list(group) for section, group in groupby(pictures.pictures(report), lambda p: p.plot.section)},
        sections={
            "trials": TRIALS,
            "pretraining": PRETRAINING,
            "finetuning": FINETUNING,
            "classes": CLASSES,
            "search": SEARCH,
        },
        predictions=pictures.predictions(report),
        costs=lines,
        gpu_hours=costs.total(lines),
        environments=costs.environments(report),
        css=(FOLDER / "page.css").read_text(),
        js=(FOLDER / "page.js").read_text(),
    )


def _view(table: Table, searches: Sequence[Search]) -> TableView:
    notes = Footnotes(table)
    lines = tables.lines(table, notes)
    return TableView(
        table=table,
        lines=lines,
        footnotes=notes.lines(),
        other=next((row.label for row in table.rows if row.key == table.against), ""),
        comparison=tables.comparison(table),
        classes=tables.class_tables(table),
        details=details.details(table, searches),
        heads=list({column.task: (column.task, column.head) for column in table.columns if column.head}.values()),
        beside=any(figure.paper for line in lines for group in line.groups if group for figure in group.figures),
    )
