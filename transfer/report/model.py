"""The report as data, from which every format is rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transfer.report.collection import PretrainingRun, RecordedSearch, Skipped, Trial
from transfer.report.statistics import SampleComparison

INCOMPLETE, DIVERGED, TOY, NOT_COMPARABLE = "incomplete", "diverged", "toy", "not comparable"
ALTERED = "altered"
MIXED, IMPORTED, OUTLIER, REPEATED, UNLIKE = "mixed", "imported", "outlier", "repeated", "unlike the column"


@dataclass(frozen=True)
class Flag:
    """A warning on a cell or a row: its kind (one of the names above) and the reason in one line."""

    kind: str
    text: str


@dataclass
class Value:
    """One metric of one cell.

    Attributes:
        mean: over the counted trials; None if there are none or if they may not be averaged.
        std: sample standard deviation (n − 1); None for fewer than two trials.
        published, published_std: the paper's; None if it has none or if they may not be compared.
        published_text: what the paper prints instead of a number.
        difference: mean − published, only if the cell compares with the published protocol.
        bold: within the table's rule below the best of the column.
        outliers: positions in the cell's `counted` of trials far from the others.
        against: comparison with the chosen row.
    """

    metric: str
    mean: float | None
    std: float | None
    published: float | None = None
    published_std: float | None = None
    published_text: str | None = None
    difference: float | None = None
    bold: bool = False
    outliers: tuple[int, ...] = ()
    against: SampleComparison | None = None


@dataclass
class Cell:
    """A row's trials on one column.

    Attributes:
        trials: all that have a result, including diverged and omitted ones.
        counted: those that are averaged (or would be, if their settings were the same).
        requested: the number that the experiment requests; None if unknown.
        waiting: one line for each trial without a result.
        values: by metric.
    """

    trials: tuple[Trial, ...]
    counted: tuple[Trial, ...]
    requested: int | None
    waiting: tuple[str, ...]
    flags: list[Flag]
    values: dict[str, Value]

    @property
    def n(self) -> int:
        """The number of counted trials."""
        return len(self.counted)

    @property
    def flags_by_kind(self) -> dict[str, list[Flag]]:
        """Kind to the flags of that kind."""
        return {kind: [f for f in self.flags if f.kind == kind] for kind in dict.fromkeys(f.kind for f in self.flags)}

    def has(self, *kinds: str) -> bool:
        """Whether the cell has a flag of one of these kinds."""
        return any(flag.kind in kinds for flag in self.flags)


@dataclass(frozen=True)
class Column:
    """A group of metrics: one task's boxes, masks, or linear evaluation.

    Attributes:
        key: unique in the table: `<task>.<branch>`.
        head: the splits trained and tested on, from the results themselves if there are any.
    """

    key: str
    task: str
    branch: str
    label: str
    head: str
    metrics: tuple[str, ...]

    @property
    def primary(self) -> str:
        """The metric that stands for the column where only one is shown."""
        return "AP" if "AP" in self.metrics else self.metrics[0]


@dataclass(frozen=True)
class Row:
    """A table row; `published` rows hold the paper's numbers and no trials. `cells` are by column key."""

    key: str
    label: str
    expected: str | None
    published: bool
    cells: Mapping[str, Cell]
    flags: tuple[Flag, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """One table in a published table's layout. `against` is the key of the row that the others are compared with."""

    layout: str
    title: str
    source: str
    row_head: str
    bold_within: float | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    against: str | None = None

    @property
    def splits(self) -> dict[str, str]:
        """Task to the splits it was trained and tested on."""
        return {column.task: column.head for column in self.columns if column.head}


@dataclass(frozen=True)
class Report:
    """Tables and all that belongs to them.

    Attributes:
        commands: command lines that make the results again.
        show_machine: the page names absolute paths and hosts.
    """

    title: str
    tables: tuple[Table, ...]
    trials: tuple[Trial, ...] = ()
    pretraining: tuple[PretrainingRun, ...] = ()
    searches: tuple[RecordedSearch, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    runs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    show_machine: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Row key to label, over all tables."""
        return {row.key: row.label for table in self.tables for row in table.rows}

    def search_of(self, row: str, task: str) -> RecordedSearch | None:
        """The search that chose the learning rate of a row on a task."""
        return self._searches.get((row, task))

    @cached_property
    def _searches(self) -> dict[tuple[str, str], RecordedSearch]:
        return {(one.record.row, one.record.task): one for one in reversed(self.searches)}
