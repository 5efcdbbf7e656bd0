"""Which results belong to which table, row and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transfer.report.expected import LAYOUTS, Expected, ExpectedTask, load
from transfer.report.model import Column
from transfer.report.records import Collection, RowInfo, Trial

BRANCHES = ("bbox", "segm", "linear")
BRANCH_LABELS = {"bbox": "detection", "segm": "instance seg.", "linear": "linear"}


@dataclass
class Group:
    """A row's trials of one task; `asked` is None where no experiment asks for a number of them."""

    trials: list[Trial] = field(default_factory=list)
    asked: int | None = None
    waiting: list[str] = field(default_factory=list)


Groups = dict[tuple[str, str], Group]
"""(row, task) to its group."""


def layouts(found: Collection, expect: Mapping[str, str]) -> list[str]:
    """Every layout that has results or is asked for some; Table 5 where there is nothing at all, not even weights."""
    places = {*((t.row, t.task) for t in found.trials), *found.asked}
    wanted = {layout_of(task, expected_key(found, row, expect)) for row, task in places}
    return [layout for layout in LAYOUTS if layout in wanted] or ([] if found.pretraining else ["table5"])


def layout_of(task: str, expected: str | None) -> str:
    """The layout a task's results belong to; a linear evaluation's also depends on its published row."""
    if not is_linear(task):
        return "table5"
    return "ablations" if expected in load("ablations").rows and expected not in load("table4").rows else "table4"


def is_linear(task: str) -> bool:
    """Whether the task is a linear evaluation."""
    return task.startswith("linear_")


def expected_key(found: Collection, row: str, expect: Mapping[str, str]) -> str | None:
    """The published row beside a row: as the user says, else as the experiment says."""
    info = found.rows.get(row)
    return expect.get(row, info.expected if info else None)


def group(found: Collection, expected: Expected, layout: str, expect: Mapping[str, str]) -> Groups:
    """The groups of one layout. A place that has no result yet has an empty group.

    Args:
        layout: what the user asked for; with `auto`, only the results whose own layout this is belong to it.
    """
    groups: Groups = {}
    for (row, task), count in found.asked.items():
        if _belongs(row, task, found, expected, layout, expect):
            place = groups.setdefault((merged(row, found, expected, expect), task), Group())
            place.asked = (place.asked or 0) + count
            place.waiting += found.waiting.get((row, task), [])
    for trial in found.trials:
        if _belongs(trial.row, trial.task, found, expected, layout, expect):
            groups.setdefault((merged(trial.row, found, expected, expect), trial.task), Group()).trials.append(trial)
    return groups


def _belongs(
    row: str, task: str, found: Collection, expected: Expected, layout: str, expect: Mapping[str, str]
) -> bool:
    if layout != "auto":
        return is_linear(task) == (layout != "table5")
    return layout_of(task, expected_key(found, row, expect)) == expected.layout


def merged(row: str, found: Collection, expected: Expected, expect: Mapping[str, str]) -> str:
    """The row a result is printed in. In Table 4 each epoch budget is a run of its own, and one row holds them all."""
    key = expected_key(found, row, expect)
    return key if key is not None and expected.layout != "table5" and key in expected.rows else row


def row_infos(found: Collection, groups: Groups, expected: Expected, expect: Mapping[str, str]) -> list[RowInfo]:
    """The table's rows: in the experiment's order, the ablations in the paper's."""
    keys = {row for row, _ in groups}
    infos = []
    for info in found.rows.values():
        key = merged(info.key, found, expected, expect)
        if key in keys:
            keys.discard(key)
            label = info.label if key == info.key else expected.rows[key].label
            infos.append(RowInfo(key, label, expected_key(found, info.key, expect)))
    if expected.layout == "ablations":
        order = list(expected.rows)
        infos.sort(key=lambda info: order.index(info.key) if info.key in order else len(order))
    return infos


def columns(groups: Groups, found: Collection, expected: Expected) -> list[Column]:
    """The table's columns: tasks in the experiment's order (without one, the paper's), boxes before masks."""
    tasks = [task for task in found.tasks if any(key[1] == task for key in groups)]
    if not found.asked:
        known = list(expected.tasks)
        tasks.sort(key=lambda task: (known.index(task) if task in known else len(known), epochs(task), task))
    return [column for task in tasks for column in _task_columns(task, groups, expected)]


def published_columns(expected: Expected) -> list[Column]:
    """The published table's own columns."""
    tasks = [task for task, facts in expected.tasks.items() if facts.columns and _standard(task, expected)]
    return [column for task in tasks for column in _task_columns(task, {}, expected)]


def epochs(task: str) -> int:
    """The pre-training epochs a linear evaluation's task names; 0 for another task."""
    digits = "".join(c for c in task if c.isdigit())
    return int(digits) if is_linear(task) and digits else 0


def _standard(task: str, expected: Expected) -> bool:
    """Whether the task is the first that fills its columns: the one the published table is shown with when alone."""
    filled = expected.tasks[task].columns
    return next(name for name, facts in expected.tasks.items() if facts.columns == filled) == task


def _task_columns(task: str, groups: Groups, expected: Expected) -> list[Column]:
    trials = [trial for (_, name), place in groups.items() if name == task for trial in place.trials]
    facts = expected.tasks.get(task, ExpectedTask())
    branches = {branch for trial in trials for branch in trial.metrics} | {
        expected.columns[c].branch for c in facts.columns
    }
    branches = branches or {"linear" if is_linear(task) else "bbox"}
    return [_column(task, branch, trials, expected, facts) for branch in sorted(branches, key=_branch_order)]


def _branch_order(branch: str) -> tuple[int, str]:
    return (BRANCHES.index(branch) if branch in BRANCHES else len(BRANCHES), branch)


def _column(task: str, branch: str, trials: Sequence[Trial], expected: Expected, facts: ExpectedTask) -> Column:
    known = expected.column_of(task, branch)
    if known:
        label = known.label if _standard(task, expected) else f"{known.label} ({task})"
    else:
        label = f"{epochs(task)} ep" if is_linear(task) else f"{task} {BRANCH_LABELS.get(branch, branch)}"
    splits = [
        (t.settings.get("train_splits"), t.settings.get("test_split")) for t in trials if t.settings.get("train_splits")
    ]
    train, test = (
        max(splits, key=splits.count)
        if splits
        else (facts.settings.get("train_splits"), facts.settings.get("test_split"))
    )
    head = f"{' + '.join(train)} / {test}" if train else ""
    return Column(f"{task}.{branch}", task, branch, label, head, ("top1",) if branch == "linear" else expected.metrics)
