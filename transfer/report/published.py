"""The published numbers: `configs/expected/` as look-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from ssl_transfer.config import load_yaml
from ssl_transfer.environment import ROOT
from ssl_transfer.formats.expected import PublishedColumn, PublishedRow, PublishedTable, PublishedTask

FOLDER = ROOT / "configs" / "expected"
LAYOUTS = ("table5", "table4", "ablations")


@dataclass(frozen=True)
class PublishedEntry:
    """The publication's numbers for one row and column.

    Attributes:
        values: metric to value; empty if nothing was published.
        stds: metric to standard deviation; empty if none was published.
        text: what is printed instead of a number (`unstable`, `NaN`).
    """

    values: Mapping[str, float | None] = field(default_factory=dict)
    stds: Mapping[str, float | None] = field(default_factory=dict)
    text: str | None = None


class ExpectedTable(PublishedTable):
    """A published table with look-ups by key."""

    @cached_property
    def row_by_key(self) -> dict[str, PublishedRow]:
        """The rows, in order."""
        return {row.key: row for row in self.rows}

    @cached_property
    def column_by_key(self) -> dict[str, PublishedColumn]:
        """The columns, in order."""
        return {column.key: column for column in self.columns}

    def task(self, task: str) -> PublishedTask:
        """A task's columns and settings; empty for a task of the user's own."""
        return self.tasks.get(task, PublishedTask())

    def column_of(self, task: str, branch: str) -> PublishedColumn | None:
        """The published column that a task's branch belongs to."""
        columns = (self.column_by_key[key] for key in self.task(task).columns)
        return next((column for column in columns if column.branch == branch), None)

    def has_own(self, task: str) -> bool:
        """Whether a task has a column of the table's own publication."""
        return any(self.column_by_key[key].own for key in self.task(task).columns)

    def entry(self, row: str | None, task: str, branch: str) -> PublishedEntry:
        """The published numbers for a row, task and branch. Numbers of the task alone replace the column's."""
        found, column = self.row_by_key.get(row or ""), self.column_of(task, branch)
        if found is None or column is None:
            return PublishedEntry()
        values, stds = found.tasks.get(task, found.values.get(column.key)), found.stds.get(column.key)
        return PublishedEntry(
            dict(zip(self.metrics, values or (), strict=False)),
            dict(zip(self.metrics, stds or (), strict=False)),
            next(iter(found.words.get(column.key, ())), None),
        )


@lru_cache(maxsize=8)
def load_expected(layout: str, folder: Path = FOLDER) -> ExpectedTable:
    """Read a published table by its layout's name.

    Raises:
        UserError: the file is missing or malformed.
    """
    path = folder / f"{layout}.yaml"
    return ExpectedTable.parse(load_yaml(path), path, "restore the file from the repository")
