"""Trials of one row on one column → a cell: what counts, marks, mean and std, the published number beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transfer.report import alike, statistics
from transfer.report.expected import Expected, ExpectedTask
from transfer.report.model import DIVERGED as DIVERGED_MARK
from transfer.report.model import (
    IMPORTED,
    INCOMPLETE,
    MIXED,
    NOT_COMPARABLE,
    OUTLIER,
    REPEATED,
    TOY,
    Cell,
    Column,
    Mark,
    Value,
)
from transfer.report.records import DIVERGED, DONE, Trial


@dataclass(frozen=True)
class Published:
    """What the paper prints in a place of its table."""

    values: Mapping[str, float | None]
    stds: Mapping[str, float | None]
    word: str | None = None


NOTHING = Published({}, {})


def published(expected: Expected, row: str | None, column: Column) -> Published:
    """The published numbers for a row (its published key) in a column."""
    place = (row, column.task, column.branch)
    return Published(expected.published(*place), expected.published_std(*place), expected.word(*place))


def build(
    trials: Sequence[Trial],
    column: Column,
    task: ExpectedTask,
    beside: Published = NOTHING,
    asked: int | None = None,
    waiting: Sequence[str] = (),
) -> Cell:
    """The cell made of these trials.

    Args:
        trials: all of the row's trials of the column's task.
        column: which branch and metrics.
        task: what the published runs of the task were made with.
        beside: the published numbers to print beside the means.
        asked: how many trials the experiment asks for.
        waiting: one line for each trial without a result.
    """
    done = [t for t in trials if t.status == DONE and column.branch in t.metrics]
    counted, again = alike.repeated(done)
    differences = alike.differing(counted)
    waiting = [
        *waiting,
        *(_no_branch(t, column) for t in trials if t.status == DONE and column.branch not in t.metrics),
    ]
    marks = [
        *_completeness(trials, counted, asked, waiting),
        *([Mark(MIXED, f"not averaged, the trials differ in {alike.describe(differences)}")] if differences else []),
        *(Mark(REPEATED, f"{t.source} left out: seed {t.seed} has a result already") for t in again),
        *_standing(counted, task),
    ]
    fair = not any(mark.kind in (MIXED, TOY, NOT_COMPARABLE) for mark in marks)
    values = {m: _value(m, counted, column.branch, beside, not differences, fair) for m in column.metrics}
    marks += _outliers(values, counted)
    return Cell(tuple(trials), tuple(counted), asked, tuple(waiting), tuple(marks), values)


def samples(cell: Cell, branch: str, metric: str) -> list[float]:
    """The values behind a cell's mean, in the order of its counted trials."""
    return [trial.metrics[branch][metric] for trial in cell.counted]


def _value(metric: str, trials: Sequence[Trial], branch: str, beside: Published, alike: bool, fair: bool) -> Value:
    found = [trial.metrics[branch][metric] for trial in trials]
    mean = statistics.mean(found) if alike else None
    paper = beside.values.get(metric)
    return Value(
        metric=metric,
        mean=mean,
        std=statistics.sample_std(found) if alike else None,
        published=paper,
        published_std=beside.stds.get(metric),
        difference=mean - paper if mean is not None and paper is not None and fair else None,
        outliers=statistics.outliers(found) if alike else (),
        word=beside.word,
    )


def _no_branch(trial: Trial, column: Column) -> str:
    return f"{trial.source}: has no {column.branch} metrics"


def _completeness(
    trials: Sequence[Trial], counted: Sequence[Trial], asked: int | None, waiting: Sequence[str]
) -> list[Mark]:
    diverged = [trial for trial in trials if trial.status == DIVERGED]
    marks = []
    if asked is not None and len(counted) + len(diverged) < asked:
        why = f"; {'; '.join(waiting)}" if waiting else ""
        marks.append(Mark(INCOMPLETE, f"{len(counted)} of {asked} trials{why}"))
    marks += [Mark(DIVERGED_MARK, _divergence(trial)) for trial in diverged]
    return marks


def _divergence(trial: Trial) -> str:
    facts = trial.divergence or {}
    where = f" at iteration {facts['iteration']}" if "iteration" in facts else ""
    lr = f", lr {facts['lr']}" if "lr" in facts else ""
    what = f": {facts['what']}" if "what" in facts else ""
    return f"seed {'unknown' if trial.seed is None else trial.seed} diverged{where}{lr}{what}"


def _standing(trials: Sequence[Trial], task: ExpectedTask) -> list[Mark]:
    """Whether the trials may stand beside the published number. A toy's own reasons are covered by its being one."""
    marks = []
    if any(trial.toy for trial in trials):
        marks.append(
            Mark(TOY, "made with an overlay that shrinks the run: says that the code works, nothing about the weights")
        )
    reasons: dict[str, None] = {}
    for trial in trials:
        if not trial.toy:
            reasons.update(dict.fromkeys([*trial.reasons, *alike.unlike_published(trial, task.settings)]))
    if reasons:
        marks.append(Mark(NOT_COMPARABLE, "; ".join(reasons)))
    if any(trial.imported for trial in trials):
        files = ", ".join(dict.fromkeys(str(trial.source) for trial in trials if trial.imported))
        marks.append(Mark(IMPORTED, f"made elsewhere, settings unknown: {files}"))
    return marks


def _outliers(values: Mapping[str, Value], counted: Sequence[Trial]) -> list[Mark]:
    found: dict[int, list[str]] = {}
    for metric, value in values.items():
        for position in value.outliers:
            found.setdefault(position, []).append(metric)
    return [
        Mark(
            OUTLIER,
            f"seed {counted[i].seed} lies far from the others in {', '.join(names)} (it is counted all the same)",
        )
        for i, names in sorted(found.items())
    ]
