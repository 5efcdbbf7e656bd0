"""A report as JSON: every figure at full precision, with its provenance by field."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transfer.report import provenance
from transfer.report.digits import printed
from transfer.report.model import Cell, Report, Row, Table, Value
from transfer.report.records import Search

FORMAT = "table/1"


def render(report: Report) -> str:
    """The report as indented JSON."""
    return json.dumps(_finite(content(report)), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def content(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "format": FORMAT,
        "title": report.title,
        "runs": [str(run) for run in report.runs],
        "tables": [_table(table, report.searches) for table in report.tables],
        "notes": list(report.notes),
        "read": len(report.trials),
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in report.skipped],
        "pretraining": [
            {"name": p.name, "folder": str(p.folder), "status": p.status, "result": dict(p.result)}
            for p in report.pretraining
        ],
        "lr_searches": [{**asdict(search), "source": str(search.source)} for search in report.searches],
    }


def _table(table: Table, searches: Sequence[Search]) -> dict[str, Any]:
    return {
        "layout": table.layout,
        "title": table.title,
        "source": table.source,
        "bold_within": table.bold_within,
        "against": table.against,
        "columns": [{**asdict(column), "metrics": list(column.metrics)} for column in table.columns],
        "rows": [_row(row, table, searches) for row in table.rows],
        "notes": list(table.notes),
    }


def _row(row: Row, table: Table, searches: Sequence[Search]) -> dict[str, Any]:
    tasks = {column.key: column.task for column in table.columns}
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "kind": "published" if row.published else "result",
        "published_row": row.expected,
        "marks": [asdict(mark) for mark in row.marks],
        "cells": {
            key: {**_cell(cell), "lr_search": provenance.of_search(searches, row.key, tasks[key])}
            for key, cell in row.cells.items()
        },
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "n": cell.n,
        "asked": cell.asked,
        "marks": [asdict(mark) for mark in cell.marks],
        "waiting": list(cell.waiting),
        "values": {metric: _value(value) for metric, value in cell.values.items()},
        "trials": [{**provenance.of_trial(trial), "counted": trial in cell.counted} for trial in cell.trials],
    }


def _value(value: Value) -> dict[str, Any]:
    found = asdict(value)
    found.pop("metric")
    return {**found, "outliers": list(value.outliers), "printed": printed(value.mean)}


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as null: a result's own blocks may hold them, JSON may not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
