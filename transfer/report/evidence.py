"""How sure a mean and a difference are: intervals over test images and seeds, from what the trials kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_transfer.errors import UserError, abbreviate
from transfer.report.cells import p_value
from transfer.report.collection import Trial, read_first
from transfer.report.model import BOTH, IMAGES, MIXED, SEEDS, UNLIKE, Cell, Column, Interval, RowComparison, Value
from transfer.resampling.verdict import Verdict, compare, holm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ssl_transfer.formats.detections import Detections

FEWEST = 3
"""Trials below which a mean has no interval of seeds alone: with two, Student's t makes it 9 times their distance."""
TOLERANCE = 1e-6
"""In per cent, of rounding."""


@dataclass(frozen=True)
class Kept:
    """What one trial kept: AP on the same resampled test sets as every trial of that test set.

    Attributes:
        file: its detections.
        truth, classes, metric, toy, draws, branches: as in the file.
        resamples: branch → metric → (R,) in per cent.
    """

    file: Path
    truth: str
    classes: tuple[str, ...]
    metric: str
    toy: bool
    draws: str
    branches: tuple[str, ...]
    resamples: Mapping[str, Mapping[str, NDArray[np.float64]]]


class Evidence:
    """What the trials of a report kept. Each file is read once, and of it only what a table needs.

    Attributes:
        damaged: files that could not be used, and why.
    """

    def __init__(self) -> None:
        self.damaged: dict[Path, str] = {}
        self._kept: dict[int, Kept | None] = {}
        self._draws: dict[str, str] = {}

    def kept(self, trial: Trial) -> Kept | None:
        """What a trial kept; None if it has no file of detections, or one that cannot be used."""
        found = trial.detections
        if found is not None and id(trial) not in self._kept:
            try:
                if isinstance(found, tuple):
                    self._kept[id(trial)] = read_first(found, partial(_read, trial))
                else:
                    self._kept[id(trial)] = _keep(found, trial.source)
            except UserError as error:
                self._drop(trial, error)
        return self._kept.get(id(trial))

    def _drop(self, trial: Trial, error: UserError) -> None:
        self.damaged[trial.source] = str(error)
        self._kept[id(trial)] = None

    def resamples(self, trials: Sequence[Trial], branch: str, metric: str) -> list[NDArray[np.float64]] | None:
        """Each trial's metric on the same resampled test sets; None if one kept none.

        Trials that were resampled with other draws are resampled anew, from their matches.
        """
        for is_anew in (False, True):
            kept = [one for trial in trials if (one := self.kept(trial)) and branch in one.branches]
            if len(kept) < len(trials) or len({one.truth for one in kept}) != 1:
                return None
            if len({one.draws for one in kept}) == 1 and kept[0].draws:
                return [one.resamples[branch][metric] for one in kept]
            for trial, one in zip(() if is_anew else trials, kept, strict=False):
                try:
                    self._kept[id(trial)] = self._resampled_anew(trial, one)
                except UserError as error:
                    self._drop(trial, error)
        return None

    def _resampled_anew(self, trial: Trial, kept: Kept) -> Kept:
        from ssl_transfer.formats.detections import Detections
        from transfer.resampling.resample import resample

        if kept.draws and kept.draws == self._draws.get(kept.truth):
            return kept
        found = trial.detections if isinstance(trial.detections, Detections) else Detections.read(kept.file)
        made = {
            branch: resample(matches, images=len(found.images), classes=len(found.classes), metric=found.metric)
            for branch, matches in found.matches.items()
        }
        draws = next(iter(made.values())).draws
        self._draws[kept.truth] = draws
        return replace(kept, draws=draws, resamples={branch: one.values for branch, one in made.items()})

    def refusal(self, trials: Iterable[Trial], branch: str) -> str:
        """Why trials may not be compared: toy marks, test sets, classes or metrics differ; empty where they may."""
        found = [(trial, self.kept(trial)) for trial in trials]
        if len({trial.toy or bool(kept and kept.toy) for trial, kept in found}) > 1:
            return "one is a toy run, the other is not"
        truths = {kept.truth[:12] for _, kept in found if kept}
        if len(truths) > 1:
            return f"the annotations of their test images differ (SHA-256 {' and '.join(sorted(truths))})"
        splits = {str(trial.settings["test_split"]) for trial, _ in found if trial.settings.get("test_split")}
        if len(splits) > 1 and not all(kept for _, kept in found):
            return f"their test splits differ ({' and '.join(sorted(splits))})"
        metrics = {kept.metric if kept else trial.settings.get("metric") for trial, kept in found} - {None}
        if len(metrics) > 1:
            return f"their definitions of AP differ ({' and '.join(sorted(map(str, metrics)))})"
        classes = [kept.classes if kept else trial.per_class.get(branch, ()) for trial, kept in found]
        lists = [set(one) for one in classes if one]
        alone = {name for one in lists for name in one if not all(name in other for other in lists)}
        if alone:
            return f"their class lists differ (not in all: {abbreviate(sorted(alone))})"
        return ""


def _read(trial: Trial, file: Path) -> Kept:
    """The resampled AP of a file of the trial's detections, and nothing else of it."""
    from safetensors import SafetensorError, safe_open

    from ssl_transfer.formats.detections import REMEDY, DetectionsMetadata

    try:
        with safe_open(file, "numpy") as stream:
            about = DetectionsMetadata.parse(json.loads((stream.metadata() or {})["detections"]), file)
            resamples: dict[str, dict[str, NDArray[np.float64]]] = {
                str(branch): {name: stream.get_tensor(f"{branch}.resamples.{name}") for name in about.resampled}
                for branch in about.branches
            }
        if about.digest(resamples) != about.resamples_sha256:
            raise ValueError("its resampled values do not have their digest")
    except (OSError, LookupError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{file} is damaged or no file of detections ({error}); {REMEDY}") from error
    facts = about.truth, tuple(about.classes), about.metric, about.toy, about.draws, tuple(about.branches)
    kept = Kept(file, *facts, resamples)
    _check_belongs(kept, trial)
    return kept


def _keep(found: Detections, source: Path) -> Kept:
    facts = found.truth, found.classes, found.metric, found.toy, found.draws, tuple(found.matches)
    return Kept(source, *facts, found.resamples)


def _check_belongs(kept: Kept, trial: Trial) -> None:
    """A trial's own AP lies among those of its resampled test sets; another trial's rarely does in every metric."""
    import numpy as np

    for branch in kept.branches if kept.draws else ():
        for metric, own in trial.metrics.get(branch, {}).items():
            drawn = kept.resamples.get(branch, {}).get(metric, np.zeros(0))
            finite = drawn[np.isfinite(drawn)]
            if not finite.size or not finite.min() - TOLERANCE <= own <= finite.max() + TOLERANCE:
                raise UserError(f"{trial.source}: {branch}.{metric} {own:.2f} is not of the detections beside it")


def compare_column(
    cells: Mapping[str, Cell], against: str | None, column: Column, evidence: Evidence, labels: Mapping[str, str]
) -> None:
    """Give the cells of a column their intervals, and compare each with that of the row `against`.

    A pair whose test sets, classes or toy marks differ is not compared, nor one with a cell that is mixed or unlike its
    column; `not_compared` says why.

    Args:
        cells: by row.
        against: the row to compare with; None, or one that is not in the column, compares nothing.
        column: the column.
        evidence: what the trials kept.
        labels: row to its name in sentences.
    """
    for cell in cells.values():
        for value in cell.values.values():
            _set_intervals(value, cell, column.branch, evidence)
    other = cells.get(against or "")
    if other is None or not other.counted:
        return
    pairs = {}
    for key, cell in cells.items():
        if key != against and cell.counted:
            cell.not_compared = _refusal(cell, other, column.branch, evidence)
            if not cell.not_compared:
                pairs[key] = cell
    for metric in column.metrics:
        verdicts = [_verdict(cell, other, column.branch, metric, evidence) for cell in pairs.values()]
        holms = f" (Holm, {count} rows)" if (count := sum(one is not None for one in verdicts)) > 1 else ""
        for (key, cell), verdict in zip(pairs.items(), holm(verdicts), strict=True):
            mean, base = cell.values[metric].mean, other.values[metric].mean
            made = RowComparison(str(against), (mean or 0.0) - (base or 0.0), cell.n, other.n)
            if verdict is not None:
                names = labels.get(key, key), labels.get(str(against), str(against))
                numbers = {name: getattr(verdict, name) for name in ("low", "high", "p", "p_holm", "detectable")}
                text = f"{verdict.sentence(*names, metric)}; {p_value(verdict.p_holm)}{holms}."
                made = replace(made, **numbers, covers=_covers(verdict), sentence=text)
            cell.values[metric].against = made


def _refusal(cell: Cell, other: Cell, branch: str, evidence: Evidence) -> str:
    if reason := evidence.refusal((*cell.counted, *other.counted), branch):
        return reason
    for kind in (MIXED, UNLIKE):
        if cell.has(kind) or other.has(kind):
            return f"{'it' if cell.has(kind) else 'the other row'} is marked {kind}"
    return ""


def _points(trials: Sequence[Trial], branch: str, metric: str) -> list[float]:
    return [trial.metrics[branch][metric] for trial in trials]


def _verdict(cell: Cell, other: Cell, branch: str, metric: str, evidence: Evidence) -> Verdict | None:
    """Compare two cells on the same resampled test sets, or by their seeds alone where a trial kept none."""
    points = [_points(one.counted, branch, metric) for one in (cell, other)]
    drawn = evidence.resamples((*cell.counted, *other.counted), branch, metric)
    return compare(*points, *((drawn[: cell.n], drawn[cell.n :]) if drawn else ()))


def _covers(verdict: Verdict) -> str:
    return SEEDS if verdict.agree is None else BOTH if verdict.seeds else IMAGES


def _set_intervals(value: Value, cell: Cell, branch: str, evidence: Evidence) -> None:
    """Set the intervals of a mean and of its trials: what a verdict says beside a row that never moves from 0."""
    drawn = evidence.resamples(cell.counted, branch, value.metric)
    if value.mean is None or (drawn is None and cell.n < FEWEST):
        return
    points = _points(cell.counted, branch, value.metric)
    value.interval = _interval(points, drawn)
    if drawn:
        value.trial_intervals = tuple(_interval([p], [d]) for p, d in zip(points, drawn, strict=True))


def _interval(points: Sequence[float], drawn: Sequence[NDArray[np.float64]] | None) -> Interval | None:
    still = [0.0] * len(points)
    found = compare(points, still, *((drawn, [[0.0]] * len(points)) if drawn else ()))
    return None if found is None else Interval(max(found.low, 0.0), min(found.high, 100.0), _covers(found))
