"""Strict configuration: YAML with `_BASE_`, an overlay, then `KEY VALUE`; an unknown key lists similar valid ones."""

from __future__ import annotations

import ast
import copy
import logging
import math
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError, nearest
from ssl_transfer.yaml_file import TEXT_KEYS, YAML_BOOLEANS, YamlDocument, parse_yaml, read_yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyChanges:
    """Config keys that had another name in an earlier release, or that no longer exist.

    Attributes:
        renamed: old dotted key to new dotted key; the old one is still read, with a warning that names the new one.
        removed: old dotted key to the sentence that says what to do; the key is refused with it.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)

    def apply(self, values: Mapping[str, Any], where: str | ValueSources, *, recorded: bool = False) -> dict[str, Any]:
        """A copy of nested `values` with today's keys.

        Args:
            values: keys and values as a file holds them.
            where: what messages call the file.
            recorded: the values were written by an earlier run, not by the user: renamed keys are read without a
                warning and removed ones are dropped.

        Raises:
            UserError: a removed key, or a key under both its old and its new name.
        """
        current = copy.deepcopy(dict(values))
        for key, advice in self.removed.items():
            if _has_key(current, key):
                if not recorded:
                    raise UserError(f"{_place(where, key)}: {key} no longer exists: {advice}")
                _pop_key(current, key)
        for old, new in self.renamed.items():
            if not _has_key(current, old):
                continue
            if _has_key(current, new):
                raise UserError(f"{_place(where, old)}: {old} is the old name of {new}; give {new} alone")
            if not recorded:
                _warn_renamed(_place(where, old), old, new)
            _set_key(current, new, _pop_key(current, old))
        return current

    def apply_to_overrides(self, overrides: Sequence[str], where: str = "command line") -> list[str]:
        """`KEY VALUE KEY VALUE …` with today's keys.

        Raises:
            UserError: a removed key.
        """
        words = list(overrides)
        for index, key in enumerate(words[::2]):
            if key in self.removed:
                raise UserError(f"{where}: {key} no longer exists: {self.removed[key]}")
            if key in self.renamed:
                _warn_renamed(where, key, self.renamed[key])
                words[2 * index] = self.renamed[key]
        return words


NO_CHANGES = KeyChanges()


def _warn_renamed(where: str, old: str, new: str) -> None:
    logger.warning("%s: %s is now called %s; the old name is read for one more release", where, old, new)


def _has_key(values: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _pop_key(values: dict[str, Any], key: str) -> Any:
    """Remove a dotted key, and the sections that hold nothing else."""
    name, _, rest = key.partition(".")
    if not rest:
        return values.pop(name)
    value = _pop_key(values[name], rest)
    if not values[name]:
        del values[name]
    return value


def _set_key(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML file as a dict, without following `_BASE_`.

    Raises:
        UserError: missing, not YAML (see `ssl_transfer.yaml_file`), a key twice, or not a mapping; names file and line.
    """
    return mapping_of(read_yaml(path)[0], path)


def mapping_of(document: YamlDocument, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document's keys and values; none if it is empty. Raises UserError for a list or a single value."""
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise UserError(f"{path}: holds a {type(document.value).__name__}, not keys and values")
    return document.value


@dataclass
class ValueSources:
    """Where the values of a config came from.

    Attributes:
        default: what messages call the place of a key that no file sets.
        places: dotted key (sections too) → `FILE, line N`, or `command line`.
        texts: dotted key → a number, boolean or null as its file writes it.
    """

    default: str
    places: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str | None] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """The place that set `key`, or the nearest section around it."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.default)

    def locate(self, error: UserError) -> UserError:
        """The error with the place of the key that its message begins with."""
        return UserError(f"{self.place(str(error).partition(' ')[0].rstrip(':,'))}: {error}")

    def add(self, document: YamlDocument, path: str | os.PathLike[str], section: str = "") -> None:
        """Record what a file sets; of an overlay only its `section`."""
        for key, line in document.lines.items():
            name = ".".join(key)
            if not section or name.startswith(f"{section}."):
                name = name.removeprefix(f"{section}.") if section else name
                self.places[name] = f"{path}, line {line}"
                self.texts[name] = document.texts.get(key)


def _place(where: str | ValueSources, key: str) -> str:
    return where if isinstance(where, str) else where.place(key.partition("[")[0])


def resolve_base_files(path: str | os.PathLike[str]) -> list[Path]:
    """List a config file and the chain of `_BASE_` files below it, base first.

    Raises:
        UserError: a base is missing or the chain is circular.
    """
    return [file for file, _ in _read_chain(path)]


def _read_chain(path: str | os.PathLike[str]) -> list[tuple[Path, YamlDocument]]:
    """A config file and its `_BASE_` files with their documents, base first."""
    chain: list[tuple[Path, YamlDocument]] = []
    seen: set[str] = set()
    current: Path | None = Path(path)
    while current is not None:
        real = os.path.realpath(current)
        if real in seen:
            raise UserError(f"{current}: _BASE_ leads back to this file; remove one of the _BASE_ lines")
        if chain and not os.path.isfile(current):  # noqa: PTH113 (false, not an error, for a name that is too long)
            what = "is not a file" if os.path.lexists(current) else "does not exist"
            advice = "correct the path (relative to the file's folder)"
            raise UserError(f"{chain[-1][0]}: its _BASE_ {current} {what}; {advice}")
        document = read_yaml(current)[0]
        base = mapping_of(document, current).get("_BASE_")
        if base is not None and not isinstance(base, str):
            raise UserError(f"{current}, line {document.lines['_BASE_',]}: _BASE_ must be the path of one file")
        seen.add(real)
        chain.append((current, document))
        current = None if base is None else _base_file(current.parent, base)
    return chain[::-1]


def _base_file(folder: Path, base: str) -> Path:
    """The file that `_BASE_` in a file of `folder` means: a path from there, else `configs/…` of this project."""
    file, shipped = folder / Path(base).expanduser(), ROOT / base
    return shipped if base.startswith("configs/") and not os.path.lexists(file) and shipped.is_file() else file


def merge_dict(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge `other` into `into` recursively, in place; values of `other` win."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge_dict(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # two anchors of one YAML node are one object
    return into


def load_with_base(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file merged over its `_BASE_` chain; `_BASE_` itself is removed."""
    return load_with_sources(path)[0]


def load_with_sources(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ValueSources]:
    """Read a file merged over its `_BASE_` chain, and where each value came from."""
    merged: dict[str, Any] = {}
    sources = ValueSources(str(path))
    for file, document in _read_chain(path):
        merge_dict(merged, {key: value for key, value in mapping_of(document, file).items() if key != "_BASE_"})
        sources.add(document, file)
    return merged, sources


OVERLAY_SECTIONS = ("pretrain", "evaluate", "transfer", "transfer_fpn")


def overlay_section(path: str | os.PathLike[str], section: str, sources: ValueSources | None = None) -> dict[str, Any]:
    """Read a section of an overlay file, one of `OVERLAY_SECTIONS`, and record it in `sources`.

    Raises:
        UserError: the file has other sections, or this one is not a mapping.
    """
    document = read_yaml(path)[0]
    content = mapping_of(document, path)
    for key in content:
        if key not in OVERLAY_SECTIONS:
            valid = ", ".join(OVERLAY_SECTIONS)
            raise UserError(f"{path}: unknown section {key!r}; an overlay has the sections {valid}")
    value = content.get(section) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: section {section} must hold keys and values")
    if sources is not None:
        sources.add(document, path, section)
    return value


def transfer_sections(values: Mapping[str, Any], section: str = "transfer") -> tuple[str, ...]:
    """The overlay sections that a config takes: an FPN detector's `transfer_fpn` is merged after `transfer`.

    Args:
        values: nested keys and values of the config, without the overlay.
        section: its own section.
    """
    fpn = section == "transfer" and "fpn" in str(flatten(values).get("MODEL.BACKBONE.NAME"))
    return (section, "transfer_fpn") if fpn else (section,)


def merge_strict(
    cfg: Any,
    values: dict[str, Any],
    where: str | ValueSources,
    changes: KeyChanges = NO_CHANGES,
    *,
    recorded: bool = False,
) -> None:
    """Merge nested `values` into a yacs/fvcore CfgNode that already holds every valid key.

    Args:
        cfg: the node; it is changed in place.
        values: keys and values as a file holds them.
        where: what messages call the file, or where each value came from.
        changes: keys of earlier releases.
        recorded: `values` were written by an earlier run; see `KeyChanges.apply`.

    Raises:
        UserError: an unknown key (with similar valid ones), a removed key, or a value of another type.
    """
    valid = dotted_keys(cfg)
    for key, value in flatten(changes.apply(values, where, recorded=recorded), set(valid)).items():
        if value == {} and key not in valid:
            continue  # an empty section sets nothing
        _set(cfg, key, value, where, valid)


def merge_overrides(
    cfg: Any, overrides: Sequence[str], where: str = "command line", changes: KeyChanges = NO_CHANGES
) -> None:
    """Merge `KEY VALUE KEY VALUE …` into a CfgNode.

    Raises:
        UserError: an odd number of words, an unknown or removed key, or a value of another type.
    """
    if len(overrides) % 2:
        raise UserError(f"{where}: overrides come in pairs KEY VALUE; {overrides[-1]!r} has no partner")
    valid = dotted_keys(cfg)
    overrides = changes.apply_to_overrides(overrides, where)
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        value = _parse_override(key, text, where)
        if value is not None and isinstance(_leaf(cfg, key, where, valid), str):
            value = value if isinstance(value, str) else text  # a folder may be named 2007
        _set(cfg, key, value, where, valid)


def _parse_override(key: str, text: str, where: str) -> Any:
    """The value of a command-line word; of a list of names each is text, with or without quotes."""
    value = parse_value(text)
    if key.rpartition(".")[2] not in TEXT_KEYS or not text.startswith("["):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return parse_yaml(text, f"{where}: {key}", key).value


def parse_value(text: str) -> Any:
    """Parse a command-line word as a Python literal; return it unchanged where it is none."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        return text


def dotted_keys(cfg: Any) -> list[str]:
    """List the leaves of a nested mapping as `A.B.C`."""
    return list(flatten(cfg))


def flatten(values: Mapping[str, Any], leaves: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested values as `{A.B.C: value}`.

    Args:
        values: a CfgNode or another nested mapping; an empty mapping in it is a value.
        leaves: keys whose mappings are values.
        prefix: of all keys.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in leaves:
            found |= flatten(value, leaves, f"{name}.")
        else:
            found[name] = value
    return found


def flatten_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a config as `{A.B.C: value}` in the types of JSON: tuples become lists."""
    return {key: _as_json(value) for key, value in flatten(cfg).items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_within(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names`, or in a section among them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """`KEY is A there and B here` for each of `keys` whose values differ; None stands for a missing one."""
    pairs = [(key, before.get(key), now.get(key)) for key in keys]
    return [f"{key} is {old!r} there and {new!r} here" for key, old, new in pairs if old != new]


def _set(cfg: Any, key: str, value: Any, where: str | ValueSources, valid: list[str]) -> None:
    old = _leaf(cfg, key, where, valid)
    *parents, leaf = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[leaf] = coerce(old, value, key, where)


def _leaf(cfg: Any, key: str, where: str | ValueSources, valid: list[str]) -> Any:
    """The current value of `key`; a UserError where there is no such key."""
    if key not in valid:
        place = _place(where, key)
        below = [name for name in valid if name.startswith(f"{key}.")]
        if below:
            raise UserError(f"{place}: {key} is a section; give its keys, such as {', '.join(below[:3])}")
        raise UserError(f"{place}: unknown key {key!r}; {nearest(key, valid)}")
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def coerce(old: Any, new: Any, key: str, where: str | ValueSources) -> Any:
    """Convert `new` to the type of `old`; None on either side and equal types pass unchanged.

    Raises:
        UserError: it has another type; names place and key.
    """
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return type(old)(_coerce_item(old, item, f"{key}[{index}]", where) for index, item in enumerate(new))
    if isinstance(new, float) and math.isnan(new):
        raise UserError(f"{_place(where, key)}: {key} is not a number (nan); give a number")
    if old is None or new is None or type(old) is type(new):
        return new
    if isinstance(old, bool) and isinstance(new, str) and new.lower() in YAML_BOOLEANS:
        return YAML_BOOLEANS[new.lower()]
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool) and abs(new) < 1 << 1000:
        return float(new)
    if isinstance(old, float) and isinstance(new, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            return coerce(old, float(new), key, where)
        except ValueError:
            pass
    if isinstance(old, dict) and isinstance(new, dict):
        return type(old)(new)
    if isinstance(old, str) and isinstance(where, ValueSources):
        written = where.texts.get(key.replace("[", ".").replace("]", ""))
        if written is not None:  # a folder may be named 2007
            return written
    advice = _explain_trap(new, old)
    raise UserError(
        f"{_place(where, key)}: {key} must be of type {type(old).__name__}, not {type(new).__name__} ({new!r}){advice}"
    )


def _explain_trap(value: Any, like: Any) -> str:
    """What to write in place of text that other readers of YAML take for a number, or that should be a list."""
    if isinstance(like, (list, tuple)) and isinstance(value, str):
        return f"; write a list: [{value}]"
    is_trap = isinstance(like, (int, float)) and re.fullmatch(r"0[0-9]+|[0-9]+(:[0-9]+)+", str(value)[:30])
    return "; write a plain decimal number: some read this in base 8 or 60" if is_trap else ""


def _coerce_item(old: Sequence[Any], item: Any, key: str, where: str | ValueSources) -> Any:
    """Convert an item for a list that held `old` so far; in a list of numbers int and float both pass unchanged."""
    if not old:
        if key.partition("[")[0].rpartition(".")[2] in TEXT_KEYS and not isinstance(item, str):
            raise UserError(f"{_place(where, key)}: {key} must be text, not {type(item).__name__} ({item!r})")
        return item
    numbers = isinstance(old[0], (int, float)) and not isinstance(old[0], bool)
    if numbers and isinstance(item, (int, float)) and not isinstance(item, bool):
        return item
    return coerce(0.0 if numbers else old[0], item, key, where)


def merge_layers(
    cfg: Any,
    file: str | os.PathLike[str],
    section: str,
    overlay: str | os.PathLike[str] | None,
    overrides: Sequence[str],
    *,
    changes: KeyChanges = NO_CHANGES,
) -> ValueSources:
    """Merge into `cfg` a config file with its `_BASE_` chain, then the overlay's `section`, then `KEY VALUE …`.

    Returns:
        Where each value came from.

    Raises:
        UserError: a missing file, an unknown key (with similar valid ones) or a removed one.
    """
    sources = ValueSources(str(file))
    for part, document in _read_chain(file):
        sources.add(document, part)
        values = {key: value for key, value in mapping_of(document, part).items() if key != "_BASE_"}
        merge_strict(cfg, values, sources, changes)
    if overlay:
        merge_strict(cfg, overlay_section(overlay, section, sources), sources, changes)
    merge_overrides(cfg, overrides, changes=changes)
    sources.places |= dict.fromkeys(overrides[::2], "command line")
    return sources


def explain_config(cfg: Mapping[str, Any], sources: ValueSources) -> str:
    """A config as YAML; a comment behind each value names the file, the argument or the default it came from."""
    return "\n".join(_explain(cfg, sources, ()))


def _explain(values: Mapping[str, Any], sources: ValueSources, section: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * len(section)
    for key, value in values.items():
        path = (*section, str(key))
        name = yaml.safe_dump(key).partition("\n")[0]
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _explain(value, sources, path)
        else:
            text = yaml.safe_dump(_as_json(value), default_flow_style=True, width=math.inf, allow_unicode=True)
            yield f"{indent}{name}: {text.partition(chr(10))[0]}  # {sources.places.get('.'.join(path), 'default')}"


def value_of(cfg: Any, key: str) -> Any:
    """Look up a dotted key."""
    node: Any = cfg
    for name in key.split("."):
        node = node[name]
    return node
