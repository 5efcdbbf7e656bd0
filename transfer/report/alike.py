"""Which results may be averaged, and which may stand beside which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transfer.report.records import Trial, as_text

SEARCHED = {"lr", "warmup_iters", "warmup_factor"}
"""Settings that may differ from row to row: the lr was searched for each method, some with a longer warm-up."""
NORMALISATION = {"norm"}
"""Differs with the number of GPUs; harmless where every trial's statistics cover its total batch (it compares)."""


def differing(trials: Sequence[Trial]) -> dict[str, Counter[str]]:
    """The settings in which trials of one cell differ: name to value to count. Empty when they may be averaged.

    Two names of a norm are no difference where every trial compares with the protocol.
    """
    facts = [trial.facts for trial in trials]
    names = {name for fact in facts for name in fact}
    counts = {name: Counter(fact.get(name, "unknown") for fact in facts) for name in sorted(names)}
    harmless = NORMALISATION if not any(trial.reasons for trial in trials) else set()
    return {name: count for name, count in counts.items() if len(count) > 1 and name not in harmless}


def describe(differences: Mapping[str, Counter[str]]) -> str:
    """`lr: 0.02 (3), 0.1 (2); …`"""
    parts = (
        f"{name}: {', '.join(f'{_short(v)} ({n})' for v, n in count.most_common())}"
        for name, count in differences.items()
    )
    return "; ".join(parts)


def repeated(trials: Iterable[Trial]) -> tuple[list[Trial], list[Trial]]:
    """The trials with a seed of their own, and those whose seed came before: they are no independent samples."""
    kept: list[Trial] = []
    again: list[Trial] = []
    seeds: set[int] = set()
    for trial in trials:
        if trial.seed is not None and trial.seed in seeds:
            again.append(trial)
            continue
        if trial.seed is not None:
            seeds.add(trial.seed)
        kept.append(trial)
    return kept, again


def unlike_published(trial: Trial, settings: Mapping[str, Any]) -> list[str]:
    """Why the trial does not stand beside the published number: recorded settings that differ from `settings`."""
    found = trial.settings
    return [
        f"{name} is {as_text(found[name])}, not {as_text(value)}"
        for name, value in settings.items()
        if name in found and found[name] is not None and as_text(found[name]) != as_text(value)
    ]


def column_norms(cells: Mapping[str, Sequence[Trial]]) -> dict[str, str]:
    """The settings most rows of a column share (each row counts once), but those that are searched for each row."""
    votes: dict[str, Counter[str]] = {}
    for trials in cells.values():
        for name, value in (trials[0].facts if trials else {}).items():
            if name not in SEARCHED | NORMALISATION | {"weights sha256", "imported"}:
                votes.setdefault(name, Counter())[value] += 1
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def unlike_column(trials: Sequence[Trial], norms: Mapping[str, str]) -> list[str]:
    """In what a cell's settings differ from those most of its column share. Imported trials' settings are unknown."""
    if not trials or trials[0].imported:
        return []
    facts = trials[0].facts
    return [
        f"{name} is {facts[name]}, elsewhere {value}"
        for name, value in norms.items()
        if facts.get(name, value) != value
    ]


def unlike_across(cells: Mapping[str, Sequence[Trial]]) -> list[str]:
    """In what a row's cells differ that must be one in a row: weights, precise BN, precision, toy or not."""
    found = []
    for name in ("weights sha256", "precise_bn", "amp", "toy"):
        values = {}
        for column, trials in cells.items():
            values.update({t.facts[name]: column for t in trials if name in t.facts})
        if len(values) > 1:
            found.append(f"{name}: " + ", ".join(f"{_short(value)} ({column})" for value, column in values.items()))
    return found


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
