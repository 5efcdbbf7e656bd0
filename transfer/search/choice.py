"""The choice of a learning rate: the best value wins, a tie goes to the smaller rate, and all of it is recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, sha256_of, write_json
from transfer.search.candidates import Candidate, read_candidate

FORMAT = "lr-search/1"


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
        content: of `lr_search.json`, as docs/reference/formats.md has it.
        warnings: what a reader of the choice should know, a line each.
    """

    content: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> float | None:
        """The learning rate; None when no point has a value."""
        chosen = self.content["chosen"]
        return None if chosen is None else float(chosen)


def choose(folders: Sequence[Path], row: str, task: str, metric: str = "bbox/AP", grid: Sequence[float] = ()) -> Choice:
    """Choose among the points that lie in `folders`.

    Args:
        folders: the points' trials.
        row, task: what the record calls them: keys of an experiment, or any name.
        metric: what is to be as high as possible: `bbox/AP`, `segm/AP`, ….
        grid: every lr that was to be tried; one without a folder is a missing point.

    Raises:
        UserError: a folder holds no point, two hold the same one, or they are not of one search.
    """
    points = _points(folders, metric, grid)
    about = _common(points)
    chosen = best(points)
    content = {
        "format": FORMAT,
        "row": row,
        "task": task,
        "trial_task": about["task"],
        "seed": about["seed"],
        "split": about["settings"]["test_split"],
        "select_on": about["select_on"],
        "heldout": about["heldout"],
        "metric": metric,
        "points": [
            {
                "lr": point.lr,
                "value": point.value,
                "status": point.status,
                "folder": None if point.folder is None else str(point.folder),
                "result_sha256": point.sha256,
            }
            for point in points
        ],
        "chosen": None if chosen is None else chosen.lr,
        "weights": about["weights"],
        "settings": about["settings"],
        "toy": about["toy"],
    }
    return Choice(content, tuple(_warnings(points, chosen)))


def best(points: Sequence[Candidate]) -> Candidate | None:
    """The point with the highest value, the smallest lr among equals; None when none has a value."""
    measured = [point for point in points if point.value is not None]
    return min(measured, key=lambda point: (-(point.value or 0.0), point.lr), default=None)


def write_choice(choice: Choice, file: Path) -> None:
    """Write `lr_search.json`; only the record of the same search is replaced.

    Raises:
        UserError: `file` is something else, or the record of another row or task.
    """
    if file.exists():
        there = read_json(file)
        mine = choice.content
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise UserError(f"--output {file} is no record of a search; choose another name")
        for key in ("row", "task"):
            if there.get(key) != mine[key]:
                raise UserError(
                    f"--output {file} records the search of {key} {there.get(key)!r}, not of {mine[key]!r}; "
                    "choose another name"
                )
    write_json(file, choice.content)


def _points(folders: Sequence[Path], metric: str, grid: Sequence[float]) -> list[Candidate]:
    """The points in ascending order of lr, those of the grid that nobody ran among them."""
    found: dict[float, Candidate] = {}
    for lr in grid:
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"--grid {lr}: a learning rate is a positive number")
    for folder in folders:
        point = read_candidate(folder, metric)
        if point is None:
            if grid:
                continue  # the grid says which lr is missing
            raise UserError(
                f"{folder} holds neither result.json nor trial.json, so its lr is unknown; "
                "run the point, leave the folder out, or name every lr with --grid"
            )
        if grid and point.lr not in grid:
            raise UserError(f"{folder}: its lr {point.lr:g} is not in --grid; add it or leave the folder out")
        if point.lr in found:
            raise UserError(f"{folder} and {found[point.lr].folder} are both points at lr {point.lr:g}; leave one out")
        found[point.lr] = point
    for lr in grid:
        found.setdefault(lr, Candidate(lr, "missing"))
    return [found[lr] for lr in sorted(found)]


def _common(points: Sequence[Candidate]) -> Mapping[str, Any]:
    """What the points share beside the lr."""
    ended = [point for point in points if point.about is not None]
    if not ended:
        raise UserError("no point has ended, so there is nothing to choose from; run them first")
    first = ended[0]
    assert first.about is not None
    for other in ended[1:]:
        assert other.about is not None
        differing = _differences(first.about, other.about)
        if differing:
            key, (here, there) = next(iter(differing.items()))
            raise UserError(
                f"{other.folder} and {first.folder} are not points of one search: {key} is {there} and {here}; "
                "only the lr may differ"
            )
    return first.about


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found


def _warnings(points: Sequence[Candidate], chosen: Candidate | None) -> list[str]:
    lines = []
    for point in points:
        if point.status == "missing":
            where = f" ({point.folder} has no result)" if point.folder else ""
            lines.append(f"lr {point.lr:g} is missing{where}; the choice was made without it")
        elif point.status == "diverged":
            lines.append(f"lr {point.lr:g} diverged")
        elif point.value is None:
            lines.append(f"lr {point.lr:g} has no value")
    if chosen is not None and len(points) > 1 and chosen in (points[0], points[-1]):
        side = "smallest" if chosen is points[0] else "largest"
        lines.append(f"the chosen lr {chosen.lr:g} is the {side} of the grid; a better one may lie beyond it")
    return lines


@dataclass(frozen=True)
class RecordedChoice:
    """A choice as a trial takes it over.

    Attributes:
        file: where it is recorded.
        sha256: of that file.
        lr: the chosen learning rate.
        content: the whole record.
    """

    file: Path
    sha256: str
    lr: float
    content: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As a trial's result holds it."""
        kept = {key: self.content[key] for key in ("row", "task", "seed", "split", "metric")}
        return {"file": str(self.file), "sha256": self.sha256, "chosen": self.lr, **kept}

    def check_trial(self, *, task: str, seed: int, total_batch: int, weights_sha256: str | None, toy: bool) -> None:
        """See that the search was made for such a trial.

        Raises:
            UserError: for another task, other weights or another total batch; on toy data; or with the trial's own
                seed.
        """
        theirs = self.content
        pairs = (
            ("the task", theirs["trial_task"], task),
            ("the weights", theirs["weights"]["sha256"] or "scratch", weights_sha256 or "scratch"),
            ("a total batch of", theirs["settings"]["total_batch"], total_batch),
        )
        for what, there, here in pairs:
            if there != here:
                raise UserError(f"--lr-from {self.file}: was searched for {what} {there}, this trial has {here}")
        if theirs["toy"] and not toy:
            raise UserError(f"--lr-from {self.file}: was searched with a toy config, this trial has none")
        if theirs["seed"] == seed:
            raise UserError(
                f"--lr-from {self.file}: the search used the seed {seed}; a reported trial needs another one"
            )


def read_choice(file: Path) -> RecordedChoice:
    """Read `lr_search.json`.

    Raises:
        UserError: it is missing, broken or of another format, or nothing was chosen.
    """
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"--lr-from {file}: is not of format {FORMAT}; give what tools/lr_search.py choose wrote")
    for key in ("row", "task", "trial_task", "seed", "split", "metric", "toy", "weights", "settings", "chosen"):
        if key not in content:
            raise UserError(f"--lr-from {file}: lacks {key!r}; ask tools/lr_search.py choose again")
    chosen = content["chosen"]
    if chosen is None:
        raise UserError(f"--lr-from {file}: nothing was chosen, for no point has a value; search other rates")
    if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or not (math.isfinite(chosen) and chosen > 0):
        raise UserError(f"--lr-from {file}: chosen is {chosen!r}, not a learning rate")
    return RecordedChoice(file, sha256_of(file), float(chosen), content)
