"""Where a figure came from, as plain data: for the JSON fields and for the page's details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfer.report.records import Search, Trial


def of_trial(trial: Trial) -> dict[str, Any]:
    """A trial's chosen lr, seed, weights and their sha256, pre-training, commit, environment, settings and files."""
    manifest = trial.weights.get("manifest") or {}
    origin = trial.origin
    return {
        "result": str(trial.source),
        "folder": str(trial.folder),
        "status": trial.status,
        "imported": trial.imported,
        "toy": trial.toy,
        "seed": trial.seed,
        "lr": trial.settings.get("lr"),
        "metrics": {branch: dict(values) for branch, values in trial.metrics.items()},
        "per_class": {branch: dict(values) for branch, values in trial.per_class.items()},
        "not_comparable": list(trial.reasons),
        "divergence": trial.divergence,
        "weights": {
            "name": trial.weights.get("name"),
            "path": trial.weights.get("path"),
            "sha256": trial.weights.get("sha256"),
            "source": manifest.get("source"),
            "preprocessing": manifest.get("preprocessing"),
        },
        "pretraining": {key: origin.get(key) for key in ("method", "recipe", "epochs", "commit") if key in origin}
        or None,
        "settings": dict(trial.settings),
        "config": dict(trial.config),
        "guards": dict(trial.guards),
        "commit": trial.environment.get("commit"),
        "environment": dict(trial.environment),
        "timing": dict(trial.timing),
        "gpu_hours": trial.gpu_hours,
    }


def of_search(searches: Sequence[Search], row: str, task: str) -> dict[str, Any] | None:
    """How the learning rate of a row on a task was chosen; None where no search is recorded."""
    for search in searches:
        if (search.row, search.task) == (row, task):
            return {
                "record": str(search.source),
                "metric": search.metric,
                "split": search.split,
                "tried": {
                    str(p["lr"]): p.get("status") if p.get("value") is None else p["value"] for p in search.points
                },
                "chosen": search.chosen,
            }
    return None
