"""The report as data, from which every format is rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transfer.report.collection import PretrainingRun, RecordedSearch, Skipped, Trial

INCOMPLETE, DIVERGED, TOY, NOT_COMPARABLE = "incomplete", "diverged", "toy", "not comparable"
ALTERED = "altered"
MIXED, IMPORTED, OUTLIER, REPEATED, UNLIKE = "mixed", "imported", "outlier", "repeated", "unlike the column"

IMAGES, BOTH, SEEDS = "test images", "test images and seeds", "seeds"
"""What an interval covers."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval within 0 … 100 per cent, and what it covers (IMAGES, BOTH or SEEDS)."""

    low: float
    high: float
    covers: str


@dataclass(frozen=True)
class RowComparison:
    """One value compared with the same of another row.

    Attributes:
        row: key of the row compared with.
        difference: mean of this row − mean of the other.
        n, n_other: trials of the two.
        low, high: 95 % interval of the difference; None without evidence.
        p, p_holm: two-sided p, and adjusted for the rows of the column (Holm); None without evidence.
        detectable: the smallest difference that this design finds in 80 % of the cases; None if unknown.
        covers: what interval and p cover; empty without evidence.
        sentence: the verdict.
    """

    row: str
    difference: float
    n: int
    n_other: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    covers: str = ""
    sentence: str = ""


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
        interval: of the mean; None without evidence.
        trial_intervals: each counted trial's own, over test images; None where it kept no detections.
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
    interval: Interval | None = None
    trial_intervals: tuple[Interval | None, ...] = ()
    against: RowComparison | None = None


@dataclass
class Cell:
    """A row's trials on one column.

    Attributes:
        trials: all that have a result, including diverged and omitted ones.
        counted: those that are averaged (or would be, if their settings were the same).
        requested: the number that the experiment requests; None if unknown.
        waiting: one line for each trial without a result.
        values: by metric.
        not_compared: why it is not compared with the chosen row; empty where it is, or where one side has no mean.
    """

    trials: tuple[Trial, ...]
    counted: tuple[Trial, ...]
    requested: int | None
    waiting: tuple[str, ...]
    flags: list[Flag]
    values: dict[str, Value]
    not_compared: str = ""

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
