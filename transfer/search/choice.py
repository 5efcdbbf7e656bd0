"""The choice of a learning rate: the best value wins, a tie goes to the smaller rate, and all of it is recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json, sha256_of
from ssl_transfer.formats.results import LR_SEARCH, RESULT_FILE, HeldOutPart, LrCandidate, LrSearchRecord
from transfer.search.candidates import Candidate, read_candidate


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes:
        record: content of `lr_search.json`.
        warnings: what a reader of the choice should know, a line each.
    """

    record: LrSearchRecord
    warnings: tuple[str, ...]


def choose(
    folders: Sequence[Path], *, row: str, task: str, metric: str = "bbox/AP", grid: Sequence[float] = ()
) -> Choice:
    """Choose among the candidates in `folders`.

    Args:
        folders: the candidates' trials.
        row, task: their names in the record: keys of an experiment, or any name.
        metric: the metric to maximise: `bbox/AP`, `segm/AP`, ….
        grid: every lr that was to be tried; one without a folder is a missing candidate.

    Raises:
        UserError: a folder holds no candidate, two hold the same one, or they are not of one search.
    """
    candidates = _read_candidates(folders, metric, grid)
    shared = _shared_by_all(candidates)
    chosen = best_candidate(candidates)
    heldout = shared["heldout"]
    record = LrSearchRecord(
        row=row,
        task=task,
        trial_task=shared["task"],
        seed=shared["seed"],
        split=shared["settings"]["test_split"],
        select_on=shared["select_on"],
        heldout=None if heldout is None else HeldOutPart(**heldout),
        metric=metric,
        points=[_as_recorded(candidate) for candidate in candidates],
        chosen=None if chosen is None else chosen.lr,
        weights=shared["weights"],
        settings=shared["settings"],
        toy=shared["toy"],
    )
    return Choice(record, tuple(_warnings(candidates, chosen)))


def _as_recorded(candidate: Candidate) -> LrCandidate:
    return LrCandidate(
        lr=candidate.lr,
        value=candidate.value,
        status=candidate.status,  # type: ignore[arg-type]
        folder=None if candidate.folder is None else str(candidate.folder),
        result_sha256=candidate.sha256,
    )


def best_candidate(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest value, the smallest lr among equals; None when none has a value."""
    measured = [candidate for candidate in candidates if candidate.value is not None]
    return min(measured, key=lambda candidate: (-(candidate.value or 0.0), candidate.lr), default=None)


def write_choice(choice: Choice, file: Path) -> None:
    """Write `lr_search.json`; only the record of the same search is replaced.

    Raises:
        UserError: `file` is something else, or the record of another row or task.
    """
    if file.exists():
        there = read_json(file)
        if not isinstance(there, dict) or there.get("format") != LR_SEARCH:
            raise UserError(f"--output {file} is no record of a search; choose another name")
        for key, mine in (("row", choice.record.row), ("task", choice.record.task)):
            if there.get(key) != mine:
                raise UserError(
                    f"--output {file} records the search of {key} {there.get(key)!r}, not of {mine!r}; "
                    "choose another name"
                )
    choice.record.write(file)


def _read_candidates(folders: Sequence[Path], metric: str, grid: Sequence[float]) -> list[Candidate]:
    """The candidates in ascending order of lr, those of the grid that were not run included."""
    found: dict[float, Candidate] = {}
    for lr in grid:
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"--grid {lr}: a learning rate is a positive number")
    for folder in folders:
        candidate = read_candidate(folder, metric)
        if candidate is None:
            if grid:
                continue  # the grid says which lr is missing
            raise UserError(
                f"{folder} holds neither result.json nor trial.json, so its lr is unknown; "
                "run the candidate, remove the folder, or name every lr with --grid"
            )
        lr = candidate.lr
        if grid and lr not in grid:
            raise UserError(f"{folder}: its lr {lr:g} is not in --grid; add it or remove the folder")
        if lr in found:
            raise UserError(f"{folder} and {found[lr].folder} are both candidates at lr {lr:g}; remove one")
        found[lr] = candidate
    for lr in grid:
        found.setdefault(lr, Candidate(lr, "missing"))
    return [found[lr] for lr in sorted(found)]


def _shared_by_all(candidates: Sequence[Candidate]) -> Mapping[str, Any]:
    """What the candidates have in common besides the lr."""
    ended = [(candidate, candidate.shared) for candidate in candidates if candidate.shared is not None]
    if not ended:
        raise UserError("no candidate has ended, so there is nothing to choose from; run them first")
    first, shared = ended[0]
    for other, others in ended[1:]:
        differing = _differences(shared, others)
        if differing:
            key, (here, there) = next(iter(differing.items()))
            raise UserError(
                f"{other.folder} and {first.folder} are not candidates of one search: {key} is {there} and {here}; "
                "only the lr may differ"
            )
    return shared


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found


def _warnings(candidates: Sequence[Candidate], chosen: Candidate | None) -> list[str]:
    lines = []
    for candidate in candidates:
        if candidate.status == "missing":
            where = f" ({candidate.folder} has no result)" if candidate.folder else ""
            lines.append(f"lr {candidate.lr:g} is missing{where}; the choice was made without it")
        elif candidate.status == "diverged":
            lines.append(f"lr {candidate.lr:g} diverged")
        elif candidate.value is None:
            lines.append(f"lr {candidate.lr:g} has no value")
    if chosen is not None and len(candidates) > 1 and chosen in (candidates[0], candidates[-1]):
        side = "smallest" if chosen is candidates[0] else "largest"
        lines.append(f"the chosen lr {chosen.lr:g} is the {side} of the grid; a better one may lie beyond it")
    return lines


@dataclass(frozen=True)
class RecordedChoice:
    """A recorded choice, whose learning rate a trial takes.

    Attributes:
        file: the record.
        sha256: of that file.
        lr: the chosen learning rate.
        record: the file's content.
    """

    file: Path
    sha256: str
    lr: float
    record: LrSearchRecord

    def as_dict(self) -> dict[str, Any]:
        """As a trial's result holds it."""
        names = {key: getattr(self.record, key) for key in ("row", "task", "seed", "split", "metric")}
        return {"file": str(self.file), "sha256": self.sha256, "chosen": self.lr, **names}

    def check_trial(self, *, task: str, seed: int, total_batch: int, weights_sha256: str | None, toy: bool) -> None:
        """Check that the search was made for such a trial.

        Raises:
            UserError: for another task, other weights or another total batch; on toy data; or with the trial's own
                seed.
        """
        record = self.record
        pairs = (
            ("the task", record.trial_task, task),
            ("the weights", (record.weights or {}).get("sha256") or "scratch", weights_sha256 or "scratch"),
            ("a total batch of", (record.settings or {}).get("total_batch"), total_batch),
        )
        for what, there, here in pairs:
            if there != here:
                raise UserError(f"--lr-from {self.file}: was searched for {what} {there}, this trial has {here}")
        if record.toy and not toy:
            raise UserError(f"--lr-from {self.file}: was searched with a toy config, this trial has none")
        if record.seed == seed:
            raise UserError(
                f"--lr-from {self.file}: the search used the seed {seed}; a reported trial needs another one"
            )


def read_choice(file: Path) -> RecordedChoice:
    """Read `lr_search.json`.

    Raises:
        UserError: it is missing, damaged or of another format, or nothing was chosen.
    """
    where, remedy = f"--lr-from {file}", "run tools/lr_search.py choose again"
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != LR_SEARCH:
        raise UserError(f"{where}: is not of format {LR_SEARCH}; give what tools/lr_search.py choose wrote")
    record = LrSearchRecord.parse(content, where, remedy)
    contradiction = record.find_contradiction()
    if contradiction:
        raise UserError(f"{where} was altered: {contradiction}; {remedy}")
    for point in record.points:
        result = Path(point.folder or "") / RESULT_FILE
        if point.folder and point.result_sha256 and result.is_file() and sha256_of(result) != point.result_sha256:
            raise UserError(f"{where}: {result} is not the result that the choice was made from; {remedy}")
    for key in ("trial_task", "seed", "toy", "weights", "settings"):
        if getattr(record, key) is None:
            raise UserError(f"{where}: {key}: is missing; {remedy}")
    if record.chosen is None:
        raise UserError(f"{where}: nothing was chosen, because no candidate has a value; search other rates")
    return RecordedChoice(file, sha256_of(file), record.chosen, record)
