"""An evaluation's folder: whose it is, whether it is finished, what is in it (docs/reference/formats.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json, write_text
from pretrain.evaluation.config import FREE

SETTINGS_FORMAT = "evaluation-settings/1"
DONE, DIVERGED = "done", "diverged"


class EvaluationFolder:
    """The files of one evaluation.

    Args:
        path: the folder; created when it is claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "evaluation.json"
        self.checkpoint = self.path / "checkpoint.pth"
        self.metrics = self.path / "metrics.json"
        self.features = self.path / "features_train.npy"
        self.result = self.path / "result.json"

    def finished(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The result where this very evaluation is finished (done or diverged), else None.

        Raises:
            UserError: the folder holds another evaluation.
        """
        if not self.settings.exists():
            return None
        self._compare(settings)
        if not self.result.exists():
            return None
        result: dict[str, Any] = read_json(self.result)
        return result

    def claim(self, settings: dict[str, Any], resume: bool) -> None:
        """Make the folder this evaluation's, or find that it is and may be gone on with. The main process's business.

        Args:
            settings: `kind`, `config` (flat keys), `weights_sha256`, and `images`: the splits' fingerprints.
            resume: whether an unfinished one may be gone on with.

        Raises:
            UserError: it holds another evaluation, or an unfinished one and `resume` is False.
        """
        if self.settings.exists():
            self._compare(settings)
            if not resume:
                raise UserError(
                    f"{self.path} holds an unfinished evaluation; add --resume to continue it, or name another --output"
                )
        else:
            for file in (self.checkpoint, self.metrics, self.features, self.result):
                if file.exists():
                    raise UserError(f"{file} is not of an evaluation and would be written over; name another --output")
            write_json(self.settings, {"format": SETTINGS_FORMAT, **settings})
        for name in (self.checkpoint.name, self.metrics.name, self.features.name, self.result.name, self.settings.name):
            for leftover in self.path.glob(f".{name}.*.tmp"):
                leftover.unlink(missing_ok=True)

    def _compare(self, settings: dict[str, Any]) -> None:
        stored = read_json(self.settings)
        changed = [
            f"{name} is {stored.get(name)!r} there and {settings[name]!r} here"
            for name in ("kind", "weights_sha256", "images")
            if name in settings and stored.get(name) != settings[name]
        ]
        before, now = stored.get("config", {}), settings["config"]
        changed += [
            f"{key} is {before.get(key)!r} there and {now.get(key)!r} here"
            for key in sorted(before.keys() | now.keys())
            if key not in FREE and before.get(key) != now.get(key)
        ]
        if changed:
            more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            raise UserError(
                f"{self.path} holds another evaluation: {'; '.join(changed[:2])}{more}; name another --output, or give "
                "what it was started with"
            )

    def write_history(self, history: list[dict[str, float]]) -> None:
        """One JSON line an epoch."""
        write_text(self.metrics, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the result, last of all, and remove the cache of features that is of no more use."""
        write_json(self.result, result)
        self.features.unlink(missing_ok=True)
