"""Reads the experiment file with its `--set` values, the site file and measured step times.

Paths in an experiment file: config files and overlays are relative to the current folder, else found by `configs/…` or
by name (`ssl_transfer.config_files`); everything else (run_dir, weights, data roots) is relative to the current folder.
Weights may also be `zoo:NAME`, `hf-hub:ORG/NAME`, or the folder of a training. Links are not followed: on a cluster
the same link may lead elsewhere on another host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ssl_transfer import environment
from ssl_transfer.config import ValueSources, explain_config, flatten, mapping_of, merge_dict
from ssl_transfer.config_files import find_config
from ssl_transfer.errors import UserError, redact_urls
from ssl_transfer.formats import explain_validation_error, locate, validate_yaml
from ssl_transfer.yaml_file import KeyPath, parse_yaml, read_yaml, redact, redact_set
from transfer.experiment.spec import Experiment, SiteConfig, StepTime

SHIPPED_STEP_TIMES = environment.ROOT / "configs/seconds.yaml"


@dataclass(frozen=True)
class ExperimentSource:
    """Where an experiment came from: its file, the file's text, and the `--set` words laid over it.

    Values of environment variables and passwords in URLs are `***` in text and words: `graph.json` records both. An
    earlier release recorded the `original` text.
    """

    path: str
    text: str
    sets: tuple[str, ...] = ()
    original: str = ""


def load_experiment(path: str | os.PathLike[str], sets: Sequence[str] = ()) -> tuple[Experiment, ExperimentSource]:
    """Read and check an experiment file with `key=value` settings laid over it.

    Raises:
        UserError: the file is missing, not YAML, names a key twice, or holds an unknown key or a wrong value.
    """
    path = find_config(path, "experiments")
    document, text = read_yaml(path)
    content, texts = mapping_of(document, path), dict(document.texts)
    for word in sets:
        values, written = _parse_set(word)
        merge_dict(content, values)
        texts |= written
    try:
        experiment = validate_yaml(Experiment, content, texts)
    except ValidationError as error:
        reason = explain_validation_error(error, Experiment, lambda key: _locate(key, str(path), document.lines, sets))
        raise UserError(reason) from error
    shown = redact(text, document.secrets)
    return experiment, ExperimentSource(str(path), shown, tuple(map(redact_set, sets)), text)


def explain_experiment(path: str | os.PathLike[str], sets: Sequence[str] = ()) -> str:
    """The experiment as YAML, each value with the line or `--set` that it came from; the environment's are hidden.

    Raises:
        UserError: as `load_experiment`.
    """
    path = find_config(path, "experiments")
    experiment, _ = load_experiment(path, sets)
    content = _without_empty(experiment.model_dump(mode="json", exclude_none=True))
    sources = ValueSources("default")
    sources.add(read_yaml(path)[0], path)
    for word in sets:
        values, _ = _parse_set(word)
        sources.places |= dict.fromkeys(flatten(values), "--set")
    return redact_urls(explain_config(content, sources))


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Values without empty sections and lists; those of environment variables are hidden."""
    shown = {}
    for key, value in values.items():
        if key == "environment":
            value = dict.fromkeys(value, "***")
        elif isinstance(value, dict):
            value = _without_empty(value)
        if value not in ({}, []):
            shown[key] = value
    return shown


def _parse_set(word: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """`a.b=value` as `{a: {b: value}}`, the value read as YAML, and how its numbers are written."""
    key, equals, text = word.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {redact_set(word)}: write key=value, for example --set data.detection=datasets/voc")
    try:
        document = parse_yaml(text, "", key)
    except UserError as error:
        raise UserError(f"--set {redact_set(word)}: the value is not YAML{error}; quote it") from error
    value: Any = document.value
    parts = _key_path(key)
    for part in reversed(parts):
        value = {part: value}
    return value, {(*parts, *path): written for path, written in document.texts.items()}


def _key_path(key: str) -> KeyPath:
    """The sections of a `--set` key; below `overrides` and `finetune` the rest is one config key with its dots."""
    parts = key.split(".")
    for index, part in enumerate(parts[:-1]):
        if index > 1 and part in ("overrides", "finetune"):
            return (*parts[: index + 1], ".".join(parts[index + 1 :]))
    return tuple(parts)


def _locate(key: tuple[str, ...], path: str, lines: Mapping[tuple[str, ...], int], sets: Iterable[str]) -> str:
    """`--set key=…` if the mistake came from there, else the file and the nearest known line."""
    for word in sets:
        given = _key_path(word.partition("=")[0])
        if key[: len(given)] == given or (key and given[: len(key)] == key and key not in lines):
            return f"--set {redact_set(word)}"
    return locate(key, path, lines)


def site_file() -> Path:
    """`$XDG_CONFIG_HOME/ssl-detection-transfer/site.yaml`, by default below `~/.config`."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "ssl-detection-transfer" / "site.yaml"


def read_site(path: Path | None = None) -> SiteConfig:
    """The user's site file; an empty one if it does not exist.

    Raises:
        UserError: it is not YAML, or holds an unknown key or a wrong value.
    """
    file = path or site_file()
    if not file.exists():
        return SiteConfig()
    document = read_yaml(file)[0]
    try:
        return validate_yaml(SiteConfig, mapping_of(document, file), document.texts)
    except ValidationError as error:
        raise UserError(
            explain_validation_error(error, SiteConfig, lambda key: locate(key, str(file), document.lines))
        ) from error


def read_step_times(path: Path = SHIPPED_STEP_TIMES) -> list[StepTime]:
    """The step times that come with the project.

    Raises:
        UserError: the file holds a mistake.
    """
    try:
        return TypeAdapter(list[StepTime]).validate_python(read_yaml(path)[0].value)
    except ValidationError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:200]}") from error


def absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)


def config_path(name: str, folder: str) -> Path:
    """The absolute path of the config file that an experiment names; see `find_config`."""
    return absolute(find_config(name, folder))


def run_dir_of(experiment: Experiment) -> Path:
    """Where the experiment writes: its `run_dir`, else `runs/<name>` in the current folder."""
    return absolute(experiment.run_dir or f"runs/{experiment.name}")
