"""A job's settings: the content of its config files, overlay and overrides; never a resolved Detectron2 config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import load_with_base, merge_dict, overlay_section, parse_value

VERSION = 1
"""Raised only when what a fingerprint is made of changes; then everything runs anew."""


HOW = {
    "pretrain": ("DATA.WORKERS", "DATA.INDEX_CACHE", "LOG", "CHECKPOINT"),
    "evaluate": ("DATA.WORKERS", "CHECKPOINT"),
    "transfer": (
        "DATALOADER.NUM_WORKERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "TRANSFER.KEEP_CHECKPOINTS",
        "TRANSFER.PREDICTIONS",
    ),
}
"""Keys (and sections) that say how a stage runs, not what it computes: changing them makes no new job."""


def words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as `KEY VALUE KEY VALUE …`, each value spelled so that `parse_value` gives it back."""
    return [word for key, value in overrides.items() for word in (key, _spell(value))]


def _spell(value: Any) -> str:
    if isinstance(value, str) and parse_value(value) == value:
        return value
    return repr(value)


@dataclass
class Settings:
    """Reads the config files of one experiment, each once.

    Attributes:
        overlay: the experiment's overlay file.
    """

    overlay: Path | None = None
    _merged: dict[tuple[Path, str], dict[str, Any]] = field(default_factory=dict)

    def resolved(self, config: Path, section: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """All that config file, `_BASE_` chain, overlay and overrides say, as `{A.B.C: value}`.

        Comments, the order of keys, which file says a thing and where the files lie make no difference to it.

        Args:
            config: the config file.
            section: `pretrain`, `evaluate` or `transfer`.
            overrides: dotted keys, laid over the rest.

        Raises:
            UserError: a file is missing or is not YAML.
        """
        if (config, section) not in self._merged:
            merged = load_with_base(config)
            if self.overlay is not None:
                merge_dict(merged, overlay_section(self.overlay, section))
            self._merged[config, section] = flat(merged)
        found = dict(self._merged[config, section])
        for key, value in overrides.items():
            found = {name: old for name, old in found.items() if not _within(name, key)}
            found.update(flat({key: value}))
        return found


def decisive(resolved: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The settings that decide a stage's result: all but those that only say how it runs."""
    return {key: value for key, value in resolved.items() if not any(_within(key, how) for how in HOW[section])}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as `{A.B.C: value}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found.update(flat(value, name + "."))
        else:
            found[name] = value
    return found


def _within(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".")


def fingerprint(**parts: Any) -> str:
    """SHA-256 in hex over what decides a job's result, the same for equal parts."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
