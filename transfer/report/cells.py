"""Trials of one row on one column → a cell: what counts, flags, mean and std; and numbers as the paper prints them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

from ssl_transfer.errors import abbreviate
from transfer.report import model, statistics
from transfer.report.collection import DIVERGED, DONE, Trial
from transfer.report.comparability import (
    describe_differences,
    differences_from_published,
    find_differences,
    split_repeated_seeds,
)
from transfer.report.model import MIXED, NOT_COMPARABLE, TOY, UNLIKE, Cell, Column, Flag, Value
from transfer.report.published import PublishedEntry

STEP = Decimal("0.1")
TOY_TEXT = "made with an overlay that shrinks the run: compares with results of that overlay, with nothing published"


def rounded(value: float) -> Decimal:
    """Round to one decimal, halves away from zero. Noise of binary sums (75.44999999999999) is removed first."""
    return (Decimal(repr(round(value, 9))).quantize(STEP, ROUND_HALF_UP)) + Decimal(0)


def printed(value: float | None, none: str = "") -> str:
    """Format as `75.5`; `none` without a value."""
    return none if value is None else str(rounded(value))


def with_std(mean: float | None, std: float | None, none: str = "") -> str:
    """Format as `75.5 ± 0.2`, or the mean alone if n is 1."""
    return printed(mean, none) + (f" ± {printed(std)}" if mean is not None and std is not None else "")


def difference(value: float, other: float) -> str:
    """Format the difference of the printed digits, such as `+0.2`, so that it agrees with the digits beside it."""
    return f"{rounded(value) - rounded(other):+}".replace("-0.0", "+0.0")


def bracketed(low: float | None, high: float | None, sign: str = "") -> str:
    """Format an interval as `[46.0, 48.2]`, with `sign` "+" as `[-0.3, +1.1]`; empty without one."""
    known = low is not None and high is not None
    return f"[{rounded(low):{sign}}, {rounded(high):{sign}}]" if known else ""  # type: ignore[arg-type]


def p_value(p: float | None) -> str:
    """Format as `p 0.013`, `p <0.001`, or `no test` if it is undefined."""
    if p is None:
        return "no test"
    return "p <0.001" if p < 0.001 else f"p {p:.3f}"


def build_cell(
    trials: Sequence[Trial],
    column: Column,
    *,
    settings: Mapping[str, object],
    published: PublishedEntry,
    requested: int | None,
    waiting: Sequence[str],
) -> Cell:
    """Build the cell of these trials.

    Args:
        trials: all of the row's trials of the column's task.
        column: which branch and metrics.
        settings: those of the task's published runs.
        published: the published numbers to print beside the means.
        requested: the number of trials that the experiment requests.
        waiting: one line for each trial without a result.
    """
    altered = [trial for trial in trials if trial.altered]
    done = [trial for trial in trials if trial.status == DONE and not trial.altered]
    counted, repeated = split_repeated_seeds(trial for trial in done if column.branch in trial.metrics)
    differences = find_differences(counted)
    no_branch = [t for t in done if column.branch not in t.metrics]
    waiting = [*waiting, *(f"{trial.source}: has no {column.branch} metrics" for trial in no_branch)]
    waiting += [f"{trial.source} was altered" for trial in altered]
    flags = _completeness_flags([t for t in trials if not t.altered], counted, requested, waiting)
    flags += [Flag(model.ALTERED, f"{trial.source} left out: {trial.altered}") for trial in altered]
    if differences:
        flags.append(Flag(MIXED, f"not averaged, the trials differ in {describe_differences(differences)}"))
    flags += [Flag(model.REPEATED, f"{t.source} left out: seed {t.seed} has a result already") for t in repeated]
    flags += _comparison_flags(counted, settings)
    cell = Cell(tuple(trials), tuple(counted), requested, tuple(waiting), flags, {})
    for metric in column.metrics:
        cell.values[metric] = _value(metric, cell, column, published)
    cell.flags += _outlier_flags(cell)
    return cell


def published_cell(published: PublishedEntry, column: Column) -> Cell:
    """Build the cell of a published row."""
    values = {
        metric: Value(metric, published.values.get(metric), published.stds.get(metric), published_text=published.text)
        for metric in column.metrics
    }
    return Cell((), (), None, (), [], values)


def samples(cell: Cell, branch: str, metric: str) -> list[float]:
    """The values behind a cell's mean, in the order of its counted trials."""
    return [trial.metrics[branch][metric] for trial in cell.counted]


def bold_best(cells: Iterable[Cell], metrics: Iterable[str], within: float) -> None:
    """Set `bold` by the published table's rule: within a margin below the best of the column, on the printed digits.

    A cell that compares with nothing (toy, not comparable, unlike its column) contends only if no other cell of the
    column compares. A single contender is not bold.

    Args:
        cells: all cells of one column.
        metrics: the column's.
        within: the margin.
    """
    cells = list(cells)
    for metric in metrics:
        known = [(cell, cell.values[metric]) for cell in cells if cell.values[metric].mean is not None]
        fair = [value for cell, value in known if not cell.has(TOY, NOT_COMPARABLE, UNLIKE)]
        digits = [(value, rounded(value.mean or 0.0)) for value in (fair or [value for _, value in known])]
        if len(digits) > 1:
            lowest = max(number for _, number in digits) - Decimal(str(within))
            for value, number in digits:
                value.bold = number >= lowest


def _value(metric: str, cell: Cell, column: Column, published: PublishedEntry) -> Value:
    found = samples(cell, column.branch, metric)
    paper = published.values.get(metric)
    value = Value(metric, None, None, paper, published.stds.get(metric), published.text)
    if not cell.has(MIXED):
        value.mean, value.std = statistics.mean(found), statistics.sample_std(found)
        value.outliers = statistics.outliers(found)
    if value.mean is not None and paper is not None and not cell.has(TOY, NOT_COMPARABLE):
        value.difference = value.mean - paper
    return value


def _completeness_flags(
    trials: Sequence[Trial], counted: Sequence[Trial], requested: int | None, waiting: Sequence[str]
) -> list[Flag]:
    diverged = [trial for trial in trials if trial.status == DIVERGED]
    flags = []
    if requested is not None and len(counted) + len(diverged) < requested:
        flags.append(Flag(model.INCOMPLETE, "; ".join([f"{len(counted)} of {requested} trials", *waiting])))
    return flags + [Flag(model.DIVERGED, _describe_divergence(trial)) for trial in diverged]


def _describe_divergence(trial: Trial) -> str:
    facts = trial.divergence or {}
    where = f" at iteration {facts['iteration']}" if "iteration" in facts else ""
    lr = f", lr {facts['lr']}" if "lr" in facts else ""
    what = f": {facts['what']}" if "what" in facts else ""
    return f"seed {'unknown' if trial.seed is None else trial.seed} diverged{where}{lr}{what}"


def _comparison_flags(trials: Sequence[Trial], settings: Mapping[str, object]) -> list[Flag]:
    """Whether the trials compare with the published number. A toy's own reasons follow from its being one."""
    flags = [Flag(TOY, TOY_TEXT)] if any(trial.toy for trial in trials) else []
    reasons: dict[str, None] = {}
    for trial in trials:
        if not trial.toy:
            reasons.update(dict.fromkeys([*trial.reasons, *differences_from_published(trial, settings)]))
    if reasons:
        flags.append(Flag(NOT_COMPARABLE, abbreviate("; ".join(reasons).split("; "), 6, "; ")))  # all: by the trial
    if files := dict.fromkeys(str(trial.source) for trial in trials if trial.imported):
        flags.append(Flag(model.IMPORTED, f"made elsewhere, settings unknown: {', '.join(files)}"))
    return flags


def _outlier_flags(cell: Cell) -> list[Flag]:
    found: dict[int, list[str]] = {}
    for metric, value in cell.values.items():
        for position in value.outliers:
            found.setdefault(position, []).append(metric)
    text = "seed {} is far from the others in {} (it is still counted)"
    return [
        Flag(model.OUTLIER, text.format(cell.counted[i].seed, ", ".join(names))) for i, names in sorted(found.items())
    ]
