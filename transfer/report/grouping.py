"""Which results belong to which table, row and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transfer.report.collection import Collection, RowInfo, Trial
from transfer.report.model import Column
from transfer.report.published import LAYOUTS, ExpectedTable, load_expected

BRANCH_LABELS = {"bbox": "detection", "segm": "instance seg.", "linear": "linear"}


@dataclass
class TrialGroup:
    """A row's trials of one task; `requested` is None if no experiment requests a number of them."""

    trials: list[Trial] = field(default_factory=list)
    requested: int | None = None
    waiting: list[str] = field(default_factory=list)


def layouts_with_results(found: Collection, expect: Mapping[str, str]) -> list[str]:
    """Every layout that has results or requested trials; Table 5 if there is nothing at all, not even weights."""
    keys = {*((t.row, t.task) for t in found.trials), *found.requested}
    wanted = {layout_of(task, expected_key(found, row, expect)) for row, task in keys}
    return [layout for layout in LAYOUTS if layout in wanted] or ([] if found.pretraining else ["table5"])


def layout_of(task: str, expected: str | None) -> str:
    """The layout that a task's results belong to; for a linear evaluation it also depends on its published row."""
    if not is_linear(task):
        return "table5"
    tables = {layout: load_expected(layout).row_by_key for layout in ("ablations", "table4")}
    return "ablations" if expected in tables["ablations"] and expected not in tables["table4"] else "table4"


def is_linear(task: str) -> bool:
    """Whether the task is a linear evaluation."""
    return task.startswith("linear_")


def epochs_of(task: str) -> int:
    """The pre-training epochs that a linear evaluation's task names; 0 for another task."""
    digits = "".join(c for c in task if c.isdigit())
    return int(digits) if is_linear(task) and digits else 0


def expected_key(found: Collection, row: str, expect: Mapping[str, str]) -> str | None:
    """The published row to compare a row with: the user's choice, else the experiment's."""
    info = found.rows.get(row)
    return expect.get(row, info.expected if info else None)


class Grouping:
    """The results of one layout by table row and task.

    Args:
        found: everything that was read.
        expected: the layout's published table.
        layout: what the user requested; with `auto`, only the results whose own layout this is belong to it.
        expect: row key to published row, over what the experiment says.

    Attributes:
        groups: (row, task) to its trials; empty groups for trials that have no result yet.
    """

    def __init__(self, found: Collection, expected: ExpectedTable, layout: str, expect: Mapping[str, str]) -> None:
        self.found, self.expected, self.layout, self.expect = found, expected, layout, expect
        self.groups: dict[tuple[str, str], TrialGroup] = {}
        for (row, task), count in found.requested.items():
            if self._belongs(row, task):
                group = self.groups.setdefault((self._table_row(row), task), TrialGroup())
                group.requested = (group.requested or 0) + count
                group.waiting += found.waiting.get((row, task), [])
        for trial in found.trials:
            if self._belongs(trial.row, trial.task):
                key = (self._table_row(trial.row), trial.task)
                self.groups.setdefault(key, TrialGroup()).trials.append(trial)

    def _belongs(self, row: str, task: str) -> bool:
        if self.layout != "auto":
            return is_linear(task) == (self.layout != "table5")
        return layout_of(task, expected_key(self.found, row, self.expect)) == self.expected.layout

    def _table_row(self, row: str) -> str:
        """The row that a result is printed in. A row of Table 4 holds a method's runs of every epoch budget."""
        key = expected_key(self.found, row, self.expect)
        merges = self.expected.layout != "table5" and key in self.expected.row_by_key
        return key if merges and key is not None else row

    def rows(self) -> list[RowInfo]:
        """The table's rows: in the experiment's order, the ablations in the paper's."""
        keys = {row for row, _ in self.groups}
        infos = []
        for info in self.found.rows.values():
            key = self._table_row(info.key)
            if key in keys:
                keys.discard(key)
                label = info.label if key == info.key else self.expected.row_by_key[key].label
                infos.append(RowInfo(key, label, expected_key(self.found, info.key, self.expect)))
        if self.expected.layout == "ablations":
            order = list(self.expected.row_by_key)
            infos.sort(key=lambda info: order.index(info.key) if info.key in order else len(order))
        return infos

    def columns(self) -> list[Column]:
        """The table's columns, tasks in the experiment's order, else in the paper's; without results, the paper's."""
        tasks = [task for task in self.found.tasks if any(key[1] == task for key in self.groups)]
        if not self.found.requested:
            known = list(self.expected.tasks)
            tasks.sort(key=lambda task: (known.index(task) if task in known else len(known), epochs_of(task), task))
        found = [column for task in tasks for column in self._task_columns(task)]
        return found or [
            column
            for task, facts in self.expected.tasks.items()
            if facts.columns and self._is_standard(task) and self.expected.has_own(task)
            for column in self._task_columns(task)
        ]

    def _is_standard(self, task: str) -> bool:
        """Whether the task is the first with its columns, which the published table is shown with when alone."""
        columns = self.expected.tasks[task].columns
        return next(name for name, facts in self.expected.tasks.items() if facts.columns == columns) == task

    def _task_columns(self, task: str) -> list[Column]:
        trials = [trial for (_, name), group in self.groups.items() if name == task for trial in group.trials]
        branches = {branch for trial in trials for branch in trial.metrics}
        branches |= {self.expected.column_by_key[key].branch for key in self.expected.task(task).columns}
        order = list(BRANCH_LABELS)
        ordered = sorted(branches, key=lambda b: (order.index(b) if b in order else len(order), b))
        head = self._splits(task, trials)
        metrics = tuple(self.expected.metrics)
        return [
            Column(
                f"{task}.{branch}",
                task,
                branch,
                self._label(task, branch),
                head,
                ("top1",) if branch == "linear" else metrics,
            )
            for branch in ordered or ["linear" if is_linear(task) else "bbox"]
        ]

    def _label(self, task: str, branch: str) -> str:
        if known := self.expected.column_of(task, branch):
            return known.label if self._is_standard(task) else f"{known.label} ({task})"
        return f"{epochs_of(task)} ep" if is_linear(task) else f"{task} {BRANCH_LABELS.get(branch, branch)}"

    def _splits(self, task: str, trials: list[Trial]) -> str:
        """The splits trained and tested on: those of most trials, else the published ones."""
        published = self.expected.task(task).settings
        recorded = [trial.settings for trial in trials if trial.settings.get("train_splits")] or [published]
        found = [(settings.get("train_splits"), settings.get("test_split")) for settings in recorded]
        train, test = max(found, key=found.count)
        return f"{' + '.join(train)} / {test}" if train else ""
