"""Which results may be averaged, and which may be compared with which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transfer.report.collection import Trial, as_text

SEARCHED = {"lr", "warmup_iters", "warmup_factor"}
"""Settings that may differ from row to row: the lr was searched for each method, some with a longer warm-up."""
NORMALIZATION = {"norm"}
"""Differs with the number of GPUs; harmless if every trial's statistics cover its total batch (it compares)."""


def find_differences(trials: Sequence[Trial]) -> dict[str, Counter[str]]:
    """The settings in which trials of one cell differ: name to value to count. Empty if they may be averaged.

    The name of the norm is ignored if every trial compares with the protocol.
    """
    facts = [trial.facts for trial in trials]
    names = {name for fact in facts for name in fact}
    counts = {name: Counter(fact.get(name, "unknown") for fact in facts) for name in sorted(names)}
    harmless = NORMALIZATION if not any(trial.reasons for trial in trials) else set()
    return {name: count for name, count in counts.items() if len(count) > 1 and name not in harmless}


def describe_differences(differences: Mapping[str, Counter[str]]) -> str:
    """Format differences as `lr: 0.02 (3), 0.1 (2); …`."""
    parts = (
        f"{name}: {', '.join(f'{_abbreviate(v)} ({n})' for v, n in count.most_common())}"
        for name, count in differences.items()
    )
    return "; ".join(parts)


def split_repeated_seeds(trials: Iterable[Trial]) -> tuple[list[Trial], list[Trial]]:
    """The first trial of every seed, and the others, which are no independent samples."""
    first: list[Trial] = []
    repeated: list[Trial] = []
    seeds: set[int] = set()
    for trial in trials:
        (repeated if trial.seed in seeds else first).append(trial)
        if trial.seed is not None:
            seeds.add(trial.seed)
    return first, repeated


def differences_from_published(trial: Trial, settings: Mapping[str, Any]) -> list[str]:
    """The trial's recorded settings that differ from those of the published runs."""
    found = trial.settings
    return [
        f"{name} is {as_text(found[name])}, not {as_text(value)}"
        for name, value in settings.items()
        if name in found and found[name] is not None and as_text(found[name]) != as_text(value)
    ]


def common_settings(cells: Iterable[Sequence[Trial]]) -> dict[str, str]:
    """The settings that most cells of a column share, without those that are searched for each row.

    Args:
        cells: the trials of each cell.
    """
    votes: dict[str, Counter[str]] = {}
    for trials in cells:
        for name, value in (trials[0].facts if trials else {}).items():
            if name not in SEARCHED | NORMALIZATION | {"weights sha256", "imported"}:
                votes.setdefault(name, Counter())[value] += 1
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def differences_from_column(trials: Sequence[Trial], common: Mapping[str, str]) -> list[str]:
    """A cell's settings that differ from the column's common ones. Those of imported trials are unknown."""
    if not trials or trials[0].imported:
        return []
    facts = trials[0].facts
    return [
        f"{name} is {facts[name]}, elsewhere {value}"
        for name, value in common.items()
        if facts.get(name, value) != value
    ]


def differences_within_row(cells: Mapping[str, Sequence[Trial]]) -> list[str]:
    """Differences between a row's columns in what must be the same: weights, precise BN, precision, toy or not."""
    found = []
    for name in ("weights sha256", "precise_bn", "amp", "toy"):
        values = {}
        for column, trials in cells.items():
            values.update({t.facts[name]: column for t in trials if name in t.facts})
        if len(values) > 1:
            found.append(f"{name}: " + ", ".join(f"{_abbreviate(v)} ({column})" for v, column in values.items()))
    return found


def _abbreviate(value: str) -> str:
    return value[:12] if len(value) == 64 else value
