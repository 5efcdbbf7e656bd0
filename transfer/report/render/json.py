"""A report as JSON: every figure at full precision, with its provenance by field."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from transfer.report.cells import printed
from transfer.report.model import Cell, Column, Report, Row, Table, Value
from transfer.report.render.rows import RenderedRow, render_rows

FORMAT = "table/1"


def render(report: Report) -> str:
    """Render the report as indented JSON."""
    return json.dumps(finite(content(report)), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def content(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "format": FORMAT,
        "title": report.title,
        "runs": [str(run) for run in report.runs],
        "tables": [_table(table, report) for table in report.tables],
        "notes": list(report.notes),
        "read": len(report.trials),
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in report.skipped],
        "pretraining": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "status": run.status,
                "result": run.result.as_dict() if run.result else {},
            }
            for run in report.pretraining
        ],
        "lr_searches": [
            {
                "source": str(search.source),
                **search.record.model_dump(include={"row", "task", "split", "metric", "points", "chosen"}),
            }
            for search in report.searches
        ],
    }


def _table(table: Table, report: Report) -> dict[str, Any]:
    return {
        "layout": table.layout,
        "title": table.title,
        "source": table.source,
        "bold_within": table.bold_within,
        "against": table.against,
        "columns": [asdict(column) for column in table.columns],
        "rows": [_row(row, report) for row in render_rows(table)],
        "notes": list(table.notes),
    }


def _row(rendered: RenderedRow, report: Report) -> dict[str, Any]:
    row = rendered.row
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "kind": "published" if row.published else "result",
        "published_row": row.expected,
        "marks": [asdict(flag) for flag in row.flags],
        "cells": {
            found.column.key: {**_cell(found.cell), "lr_search": _search(report, row, found.column)}
            for found in rendered.cells
            if found.cell is not None
        },
    }


def _search(report: Report, row: Row, column: Column) -> dict[str, Any] | None:
    search = report.search_of(row.key, column.task)
    return search.provenance() if search else None


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "n": cell.n,
        "asked": cell.requested,
        "marks": [asdict(flag) for flag in cell.flags],
        "waiting": list(cell.waiting),
        "not_compared": cell.not_compared,
        "values": {metric: _value(value) for metric, value in cell.values.items()},
        "trials": [{**trial.provenance(), "counted": trial in cell.counted} for trial in cell.trials],
    }


def _value(value: Value) -> dict[str, Any]:
    numbers = asdict(value)
    keys = ("mean", "std", "published", "published_std", "difference", "bold", "outliers", "interval", "against")
    return {**{key: numbers[key] for key in keys}, "word": value.published_text, "printed": printed(value.mean)}


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as null: a result's own sections may hold them, JSON may not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
