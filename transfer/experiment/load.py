"""From an experiment file and `--set` to a checked `Experiment`; every mistake is a UserError of one line."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from common.config import load_yaml, merge_dict
from common.errors import UserError, nearest
from transfer.experiment.spec import Experiment


@dataclass(frozen=True)
class Source:
    """Where an experiment came from.

    Attributes:
        path: the file.
        text: its content when it was read.
        sets: the `--set` words laid over it.
    """

    path: str
    text: str
    sets: tuple[str, ...] = ()


def load(path: str | os.PathLike[str], sets: Sequence[str] = ()) -> tuple[Experiment, Source]:
    """Read and check an experiment file with `key=value` settings laid over it.

    Raises:
        UserError: the file is missing, not YAML, names a key twice, or holds an unknown key or a wrong value.
    """
    content = load_yaml(path)
    text = Path(path).read_text(encoding="utf-8")
    for word in sets:
        merge_dict(content, _parse_set(word))
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, str(path), text, sets)) from error
    return experiment, Source(str(path), text, tuple(sets))


def _parse_set(word: str) -> dict[str, Any]:
    """`a.b=value` as `{a: {b: value}}`, the value read as YAML."""
    key, equals, text = word.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {word}: write key=value, for example --set data.detection=datasets/voc")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {word}: the value is not YAML; quote it") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast("dict[str, Any]", value)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every key, by its path."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node | None, at: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = (*at, str(key.value))
            found[name] = key.start_mark.line + 1
            walk(value, name)

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


def explain(
    error: ValidationError, path: str, text: str, sets: Iterable[str] = (), model: type[BaseModel] = Experiment
) -> str:
    """The first mistake as one line; how many more there are.

    Args:
        error: what pydantic found.
        path: the file.
        text: its content.
        sets: the `--set` words that were laid over it.
        model: what it was to be.
    """
    lines = _lines(text)
    # A misspelt key is often missing too: the spelling says more.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    parts = tuple(str(part) for part in first["loc"] if part != "[key]")
    key = ".".join(parts)
    what = _reason(first, parts, model)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_where(path, parts, lines, sets)}: {key + ': ' if key else ''}{what}{more}"


def _where(path: str, parts: tuple[str, ...], lines: dict[tuple[str, ...], int], sets: Iterable[str]) -> str:
    """`--set key=…` when the mistake came from there, else the file and the nearest line that is known."""
    for word in sets:
        given = tuple(word.partition("=")[0].split("."))
        if parts[: len(given)] == given or (parts and given[: len(parts)] == parts and parts not in lines):
            return f"--set {word}"
    for length in range(len(parts), 0, -1):
        if parts[:length] in lines:
            return f"{path}, line {lines[parts[:length]]}"
    return path


def _reason(problem: Any, parts: tuple[str, ...], model: type[BaseModel]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(parts[-1], _fields_at(parts[:-1], model))}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{value!r} is no name; use letters, digits, '-', '_' and '+'"
    shown = "" if isinstance(value, (dict, list)) else f", not {value!r}"
    return problem["msg"].replace("Input should be", "must be").replace("valid ", "") + shown


def _fields_at(parts: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that are valid in the section that `parts` leads to."""
    current: Any = model
    for part in parts:
        current = _model_in(current.model_fields[part].annotation if _is_model(current) else current)
    return list(current.model_fields) if _is_model(current) else []


def _model_in(annotation: Any) -> Any:
    """The class inside `Section | None`; `dict[str, Section]` becomes `_Values` until its key is passed."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return next((a for a in typing.get_args(annotation) if _is_model(a)), annotation)
    if origin in (dict, list):
        return _Values(typing.get_args(annotation)[-1])
    return annotation.of if isinstance(annotation, _Values) else annotation


@dataclass(frozen=True)
class _Values:
    """A mapping whose next part is a user's own key."""

    of: Any


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
