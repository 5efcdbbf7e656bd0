"""Reading a recorded choice back, for the trials that are to be run at the learning rate it names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, sha256_of
from transfer.search.choose import FORMAT


@dataclass(frozen=True)
class Recorded:
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

    def check(self, task: str, seed: int, total_batch: int, weights_sha256: str | None, toy: bool) -> None:
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


def read_recorded(file: Path) -> Recorded:
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
    return Recorded(file, sha256_of(file), float(chosen), content)
