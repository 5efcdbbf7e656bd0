"""Every stage's config keys and defaults as data, so that a fingerprint is of resolved values without torch.

`defaults.json` is generated from the code: `python tests/common/formats/write_defaults.py`; a test compares the two.
Of each stage it holds `defaults` (key to value), and what the fingerprints of earlier releases need: `first` (the
defaults of keys whose default was another when the key appeared), `names` (today's key to its former names, oldest
first) and `removed` (keys that are gone, with the value that today's code acts as).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config import ValueSources, coerce
from common.errors import UserError, nearest
from common.files import read_json
from common.formats.run_only import STAGES, is_run_only
from common.yaml_file import YAML_BOOLEANS

DEFAULTS_FILE = Path(__file__).with_name("defaults.json")
SCHEMA = 1
"""Version of what a fingerprint of settings is made of; another one runs every job again."""


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    tables: dict[str, dict[str, dict[str, Any]]] = read_json(DEFAULTS_FILE)
    return tables


def default_values(stage: str) -> dict[str, Any]:
    """The stage's defaults by dotted key.

    Args:
        stage: `pretrain`, `evaluate` or `transfer`.
    """
    return dict(_tables()[stage]["defaults"])


def check_keys(stage: str, values: Mapping[str, Any], where: str | ValueSources) -> None:
    """Check keys, and their values' types, without the stage's code; former names and removed keys pass.

    Args:
        stage: `pretrain`, `evaluate` or `transfer`.
        values: dotted keys and values.
        where: what messages call their place.

    Raises:
        UserError: an unknown key (with similar valid ones), or a value of another type.
    """
    tables = _tables()[stage]
    known = tables["defaults"]
    former = {*tables["removed"], *(name for names in tables["names"].values() for name in names)}
    for key, value in values.items():
        parent = next((name for name in known if key.startswith(f"{name}.")), None)
        if key in known:
            coerce(known[key], value, key, where)
        elif parent is None and key not in former and value != {}:
            place = where if isinstance(where, str) else where.place(key)
            raise UserError(f"{place}: unknown key {key!r}; {nearest(key, known)}")


def first_name(stage: str, key: str) -> str:
    """The name that a key had when it appeared: fingerprints keep it."""
    return _schema(stage).names.get(key, key)


def decisive_settings(stage: str, values: Mapping[str, Any], *, recorded: bool = False) -> dict[str, Any]:
    """The values that decide the stage's result, as far as they differ from the keys' first defaults.

    Writing a default down changes nothing, and neither does a new key; another default in the code does.

    Args:
        stage: `pretrain`, `evaluate` or `transfer`.
        values: dotted keys, under today's or former names.
        recorded: the values are all there were, as an earlier run recorded them; else keys that are missing have
            today's defaults, and today's code reads them all.

    Returns:
        Value by the key's first name, in plain JSON types.
    """
    schema = _schema(stage)
    given = {schema.names.get(key, key): value for key, value in values.items()}
    usual = schema.first | (_tables()[stage]["removed"] if recorded else {})
    found = {} if recorded else {name: value for name, value in schema.changed.items() if name not in given}
    return found | _decisive(stage, given, usual, schema.today)


@dataclass(frozen=True)
class _Schema:
    """Of a stage, by each key's first name: today's key, the first default, and today's default if it is another."""

    names: dict[str, str]  # the first name of every key that has several
    today: dict[str, str]
    first: dict[str, Any]
    changed: dict[str, Any]


@lru_cache(maxsize=len(STAGES))
def _schema(stage: str) -> _Schema:
    table = _tables()[stage]
    names = {name: str(former[0]) for former in table["names"].values() for name in former}
    names |= {key: str(former[0]) for key, former in table["names"].items()}
    today = {names.get(key, key): key for key in table["defaults"]}
    first = {name: table["first"].get(key, table["defaults"][key]) for name, key in today.items()}
    defaults = {name: table["defaults"][key] for name, key in today.items()}
    return _Schema(names, today, first, _decisive(stage, defaults, first, today))


def _decisive(
    stage: str, given: Mapping[str, Any], usual: Mapping[str, Any], today: Mapping[str, str]
) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        if (name in usual and value == usual[name]) or is_run_only(stage, today.get(name, name)):
            continue
        plain = plain_value(value, usual.get(name))
        if name not in usual or plain != plain_value(usual[name]):
            found[name] = plain
    return found


def plain_value(value: Any, like: Any = None) -> Any:
    """A value as JSON holds it, one spelling for equal values: 1 for 1.0, a list for a tuple.

    Args:
        value: of a config.
        like: the key's default; where it is a number, text such as `1e-4` (which YAML 1.1 reads as text) is one, and
            where it is a boolean, so are `yes` and `off`.
    """
    if isinstance(value, str) and isinstance(like, bool):
        return YAML_BOOLEANS.get(value.lower(), value)
    if isinstance(value, str) and isinstance(like, float):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value if isinstance(value, (int, str)) else json.loads(json.dumps(value, default=str))
