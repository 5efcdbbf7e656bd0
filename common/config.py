"""Strict configuration: YAML with `_BASE_`, an overlay, then `KEY VALUE`; an unknown key lists the nearest valid."""

from __future__ import annotations

import ast
import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, nearest


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which by itself lets the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                problem = f"the key {key.value!r} stands here a second time"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One YAML file as a dict, without following `_BASE_`.

    Raises:
        UserError: missing, not YAML, a key twice, or not a mapping; names file and line.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"config file {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config file {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', error)})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not keys and values")
    return value


def resolve_base_files(path: str | os.PathLike[str]) -> list[Path]:
    """List a config file and the chain of `_BASE_` files below it, base first.

    Raises:
        UserError: a base is missing or the chain is circular.
    """
    chain: list[Path] = []
    current: Path | None = Path(path)
    while current is not None:
        resolved = current.resolve()
        if resolved in [p.resolve() for p in chain]:
            raise UserError(f"{current}: _BASE_ leads back to itself; remove one of the _BASE_ lines")
        if chain and not current.is_file():
            raise UserError(
                f"{chain[-1]}: its _BASE_ {current} does not exist; mend the path (it starts at the file's folder)"
            )
        base = load_yaml(current).get("_BASE_")
        chain.append(current)
        current = None if base is None else current.parent / Path(str(base)).expanduser()
    return chain[::-1]


def merge_dict(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` laid over `into`, key by key, in place."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge_dict(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # two anchors of one YAML node are one object
    return into


def load_with_base(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file with its `_BASE_` chain merged, `_BASE_` itself removed."""
    merged: dict[str, Any] = {}
    for file in resolve_base_files(path):
        content = load_yaml(file)
        content.pop("_BASE_", None)
        merge_dict(merged, content)
    return merged


OVERLAY_SECTIONS = ("pretrain", "evaluate", "transfer")


def overlay_section(path: str | os.PathLike[str], section: str) -> dict[str, Any]:
    """The `pretrain`, `evaluate` or `transfer` section of an overlay file.

    Raises:
        UserError: the file has other sections, or this one is not a mapping.
    """
    content = load_yaml(path)
    for key in content:
        if key not in OVERLAY_SECTIONS:
            valid = ", ".join(OVERLAY_SECTIONS)
            raise UserError(f"{path}: unknown section {key!r}; an overlay has the sections {valid}")
    value = content.get(section) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: section {section} must hold keys and values")
    return value


def merge_strict(cfg: Any, values: dict[str, Any], where: str) -> None:
    """Merge nested `values` into a yacs/fvcore CfgNode that already holds every valid key.

    Raises:
        UserError: an unknown key (with the nearest valid ones) or a value of another type.
    """
    valid = dotted_keys(cfg)
    for key, value in _leaves(values, set(valid)):
        _set(cfg, key, value, where, valid)


def merge_overrides(cfg: Any, overrides: Sequence[str], where: str = "command line") -> None:
    """Merge `KEY VALUE KEY VALUE …` into a CfgNode.

    Raises:
        UserError: an odd number of words, an unknown key, or a value of another type.
    """
    if len(overrides) % 2:
        raise UserError(f"{where}: overrides come in pairs KEY VALUE; {overrides[-1]!r} has no partner")
    valid = dotted_keys(cfg)
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        value = parse_value(text)
        if value is not None and isinstance(_leaf(cfg, key, where, valid), str):
            value = value if isinstance(value, str) else text  # a folder may be called 2007
        _set(cfg, key, value, where, valid)


def parse_value(text: str) -> Any:
    """A command-line word as the Python literal it spells, else as the string it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def dotted_keys(cfg: Any, prefix: str = "") -> list[str]:
    """Every leaf of a nested mapping as `A.B.C`."""
    keys: list[str] = []
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        keys += dotted_keys(value, name + ".") if isinstance(value, dict) and value else [name]
    return keys


def _leaves(values: dict[str, Any], valid: set[str], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in valid:
            found += _leaves(value, valid, name + ".")
        else:
            found.append((name, value))
    return found


def _set(cfg: Any, key: str, value: Any, where: str, valid: list[str]) -> None:
    old = _leaf(cfg, key, where, valid)
    *parents, leaf = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[leaf] = _coerce(old, value, key, where)


def _leaf(cfg: Any, key: str, where: str, valid: list[str]) -> Any:
    """The value `key` has now; a UserError when there is no such key."""
    if key not in valid:
        below = [name for name in valid if name.startswith(f"{key}.")]
        if below:
            raise UserError(f"{where}: {key} is a section; give its keys, such as {', '.join(below[:3])}")
        raise UserError(f"{where}: unknown key {key!r}; {nearest(key, valid)}")
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _coerce(old: Any, new: Any, key: str, where: str) -> Any:
    """`new` in the type of `old`; None (in either place) and equal types pass as they are."""
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return type(old)(_coerce_item(old, item, f"{key}[{index}]", where) for index, item in enumerate(new))
    if old is None or new is None or type(old) is type(new):
        return new
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if isinstance(old, float) and isinstance(new, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            return float(new)
        except ValueError:
            pass
    if isinstance(old, dict) and isinstance(new, dict):
        return type(old)(new)
    raise UserError(f"{where}: {key} must be of type {type(old).__name__}, not {type(new).__name__} ({new!r})")


def _coerce_item(old: Sequence[Any], item: Any, key: str, where: str) -> Any:
    """An item for a list that so far held `old`; among numbers int and float both pass as they are."""
    if not old:
        return item
    numbers = isinstance(old[0], (int, float)) and not isinstance(old[0], bool)
    if numbers and isinstance(item, (int, float)) and not isinstance(item, bool):
        return item
    return _coerce(0.0 if numbers else old[0], item, key, where)


def merge_layers(
    cfg: Any, file: str | os.PathLike[str], section: str, overlay: str | None, overrides: Sequence[str]
) -> None:
    """Lay over `cfg` a config file with its `_BASE_` chain, then the overlay's `section`, then `KEY VALUE …`.

    Raises:
        UserError: a missing file, or an unknown key (with the nearest valid ones).
    """
    for part in resolve_base_files(file):
        values = load_yaml(part)
        values.pop("_BASE_", None)
        merge_strict(cfg, values, str(part))
    if overlay:
        merge_strict(cfg, overlay_section(overlay, section), overlay)
    merge_overrides(cfg, overrides)


def value_of(cfg: Any, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = cfg
    for name in key.split("."):
        node = node[name]
    return node
