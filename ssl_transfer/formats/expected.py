"""Published tables: `configs/expected/<layout>.yaml`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from ssl_transfer.formats import FileFormat

EXPECTED: Final = "expected/1"

Number = Annotated[float, Field(allow_inf_nan=False)]
Numbers = list[Number | None]


class PublishedColumn(FileFormat):
    """A column of a published table: a group of metrics."""

    key: str = Field(description="the column's name in this file")
    label: str = Field(description="heading")
    branch: Literal["bbox", "segm", "linear"] = Field(description="boxes, masks or linear evaluation")
    trials: int = Field(description="number of runs that an entry averages", ge=1)
    own: bool = Field(
        default=True, description="of the table's publication; false: of others, which the rows name, and shown beside"
    )


class PublishedTask(FileFormat):
    """A task's columns, and the settings that its runs must have to be compared with them."""

    columns: list[str] = Field(default=[], description="columns that the task belongs to; empty for none")
    settings: dict[str, Any] = Field(default={}, description="settings of the published runs")
    note: str | None = Field(default=None, description="known difference from the publication, printed below the table")


class PublishedRow(FileFormat):
    """A row of a published table. Lists hold one value for each metric of the table."""

    key: str = Field(description="the row's name in this file and for `expected` and `--expect`")
    label: str = Field(description="printed name")
    group: str | None = Field(default=None, description="heading above the row")
    note: str | None = Field(default=None, description="remark, printed below the table")
    source: str | None = Field(default=None, description="where the numbers come from, if not from the table's source")
    values: dict[str, Numbers] = Field(default={}, description="column to values; null without a number")
    stds: dict[str, Numbers] = Field(default={}, description="column to standard deviations")
    words: dict[str, list[str]] = Field(default={}, description="column to the text printed in place of numbers")
    tasks: dict[str, Numbers] = Field(default={}, description="task to values published for that task alone")
    trials: int | None = Field(default=None, description="number of runs, if it differs from the column's", ge=1)


class PublishedTable(FileFormat):
    """One published table."""

    format: Literal["expected/1"] = Field(default=EXPECTED, description="format and its version")
    layout: str = Field(description="the layout's name: `table5`, `table4` or `ablations`")
    title: str = Field(description="the table's title")
    source: str = Field(description="the publication")
    bold_within: float | None = Field(
        description="entries at most this far below the best of their column are bold; null for no bold entries"
    )
    row_head: str = Field(description="heading of the first column")
    metrics: list[str] = Field(description="metrics of a column, in the order of the rows' values")
    columns: list[PublishedColumn] = Field(description="columns, in order")
    tasks: dict[str, PublishedTask] = Field(description="tasks of this project")
    rows: list[PublishedRow] = Field(description="rows, in order")

    @model_validator(mode="after")
    def _check_references(self) -> PublishedTable:
        """Refuse rows and tasks that name an unknown column or task, and lists of another length than `metrics`."""
        columns = {column.key for column in self.columns}
        for name, task in self.tasks.items():
            if unknown := set(task.columns) - columns:
                raise ValueError(f"task {name}: no such column: {', '.join(sorted(unknown))}")
        for row in self.rows:
            if unknown := ({*row.values, *row.stds, *row.words} - columns) | (set(row.tasks) - set(self.tasks)):
                raise ValueError(f"row {row.key}: no such column or task: {', '.join(sorted(unknown))}")
            for values in (*row.values.values(), *row.stds.values(), *row.tasks.values()):
                if len(values) != len(self.metrics):
                    raise ValueError(f"row {row.key}: {len(values)} values for {len(self.metrics)} metrics")
        return self
