"""One file a format: a report in, text out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ssl_transfer.errors import UserError, nearest

if TYPE_CHECKING:
    from transfer.report.model import Report

FUNCTIONS = {
    "md": ("markdown", "render"),
    "csv": ("csv", "render"),
    "long": ("csv", "render_long"),
    "latex": ("latex", "render"),
    "json": ("json", "render"),
    "html": ("html", "render"),
}
"""Format → module and function here."""


def render_as(report: Report, format: str) -> str:
    """A report as text of one of the formats `FUNCTIONS`.

    Raises:
        UserError: there is no such format.
    """
    if format not in FUNCTIONS:
        raise UserError(f"format {format!r} is unknown; {nearest(format, FUNCTIONS)}")
    module, function = FUNCTIONS[format]
    text: str = getattr(importlib.import_module(f"{__name__}.{module}"), function)(report)
    return text
