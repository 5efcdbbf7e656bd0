"""The table as data: what every format prints and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transfer.report.records import Pretraining, Search, Skipped, Trial
from transfer.report.statistics import Comparison

INCOMPLETE, DIVERGED, TOY, NOT_COMPARABLE = "incomplete", "diverged", "toy", "not comparable"
MIXED, IMPORTED, OUTLIER, REPEATED, UNLIKE = "mixed", "imported", "outlier", "repeated", "unlike the column"


@dataclass(frozen=True)
class Mark:
    """A warning on a cell or a row: its kind (one of the names above) and one line that says why."""

    kind: str
    text: str


@dataclass(frozen=True)
class Value:
    """One metric of one cell.

    Attributes:
        mean: over the trials that count; None where there is none or where they may not be averaged.
        std: sample standard deviation (n − 1); None for fewer than two trials.
        published, published_std: the paper's; None where it has none or where they may not stand side by side.
        difference: mean − published, only where the cell compares with the published protocol.
        bold: within the table's rule below the best of the column.
        outliers: positions in the cell's `counted` of trials far from the others.
        against: comparison with the chosen row.
        word: what the paper prints instead of a number.
    """

    metric: str
    mean: float | None
    std: float | None
    published: float | None = None
    published_std: float | None = None
    difference: float | None = None
    bold: bool = False
    outliers: tuple[int, ...] = ()
    against: Comparison | None = None
    word: str | None = None


@dataclass(frozen=True)
class Cell:
    """A row's trials on one column.

    Attributes:
        trials: all that have a result, diverged and left-out ones too.
        counted: those that are averaged (or would be, were they alike).
        asked: how many the experiment asks for; None when unknown.
        waiting: one line for each trial without a result.
    """

    trials: tuple[Trial, ...]
    counted: tuple[Trial, ...]
    asked: int | None
    waiting: tuple[str, ...]
    marks: tuple[Mark, ...]
    values: Mapping[str, Value]

    @property
    def n(self) -> int:
        """How many trials stand behind the mean."""
        return len(self.counted)

    def has(self, kind: str) -> bool:
        """Whether a mark of this kind is on the cell."""
        return any(mark.kind == kind for mark in self.marks)


@dataclass(frozen=True)
class Column:
    """A group of metrics: one task's boxes, masks, or linear evaluation.

    Attributes:
        key: unique in the table: `<task>.<branch>`.
        head: the splits trained and tested on, from the results themselves where there are any.
    """

    key: str
    task: str
    branch: str
    label: str
    head: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A table row; `published` rows hold the paper's numbers and no trials."""

    key: str
    label: str
    expected: str | None
    published: bool
    cells: Mapping[str, Cell]
    marks: tuple[Mark, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """One table in a published table's layout. `against` is the key of the row the others are compared with."""

    layout: str
    title: str
    source: str
    row_head: str
    bold_within: float | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    against: str | None = None


@dataclass(frozen=True)
class Report:
    """Tables and all that belongs to them."""

    title: str
    tables: tuple[Table, ...]
    trials: tuple[Trial, ...] = ()
    pretraining: tuple[Pretraining, ...] = ()
    searches: tuple[Search, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    runs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
