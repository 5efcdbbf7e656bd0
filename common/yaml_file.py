"""YAML files as their authors mean them: no words that turn into numbers, the line of every key, bounded effort.

YAML 1.1, which PyYAML reads, takes `no` for false, `12:00:00` for 43200, `010` for 8 and `2020-01-01` for a date. Here
they are text, which the key that they are given to accepts or refuses (`common.config`, `common.formats`). True, false,
null, decimal and hexadecimal numbers are read as before.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from common.errors import UserError, redact_urls
from common.files import decode_text, describe_unreadable, read_input

KeyPath = tuple[str, ...]
"""A key of a nested document, such as `("rows", "simsiam", "label")`; an index of a list is a number as text."""

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 22, 50, 200_000
"""Larger files are refused; an alias counts as often as it is used."""
TEXT_KEYS = frozenset(("CLASSES", "TRAIN", "TEST", "FOLDER", "IMAGE_SET", "ANNOTATIONS"))
"""Keys whose values, or whose list's items, are names: `CLASSES: [1, on, 010]` are three texts."""

YAML_BOOLEANS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}
"""YAML 1.1's other words for true and false, in lower case: text, unless a key takes a boolean."""

_WORDS: dict[str, bool | None] = {"": None, "~": None}
for _word, _meaning in (("null", None), ("true", True), ("false", False)):
    _WORDS |= dict.fromkeys((_word, _word.title(), _word.upper()), _meaning)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)")
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SHORT_FLOAT = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")
MAX_DIGITS = 300
_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class YamlDocument:
    """The content of a YAML text, and where it stands.

    Attributes:
        value: plain dicts (with text as keys), lists, texts, numbers, booleans and None.
        lines: the line of every key and item.
        texts: how plain numbers (1e-4, which YAML 1.1 takes for text, too), booleans and nulls are written.
        secrets: the places (start, end) of the values below a key `environment`.
    """

    value: Any
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    texts: Mapping[KeyPath, str] = field(default_factory=dict)
    secrets: tuple[tuple[int, int], ...] = ()


def read_yaml(path: str | os.PathLike[str]) -> tuple[YamlDocument, str]:
    """Read one YAML file; its document and its text.

    Raises:
        UserError: missing, no regular file, too large, or what `parse_yaml` refuses; names file and line.
    """
    try:
        text = decode_text(read_input(path, MAX_BYTES), str(path))
    except OSError as error:
        raise UserError(describe_unreadable(path, error, "config file")) from error
    return parse_yaml(text, str(path)), text


def parse_yaml(text: str, where: str, key: str = "") -> YamlDocument:
    """Parse one YAML document.

    Args:
        text: the document.
        where: what messages call it.
        key: the dotted key that the whole document is the value of; see `TEXT_KEYS`.

    Raises:
        UserError: not YAML, a key twice, a tag or a key without meaning here, too deep or too large.
    """
    reader = _Reader(where)
    try:
        return reader.read(yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), key)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reader.refuse(str(getattr(error, "problem", None) or error), mark.line if mark else None)


class _Reader:
    """Builds a document from the parser's events, one after another."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self.texts: dict[KeyPath, str] = {}
        self.secrets: list[tuple[int, int]] = []
        self.nodes = 0
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        self.events: Iterator[Any] = iter(())

    def read(self, events: Iterator[Any], key: str) -> YamlDocument:
        self.events = (
            event for event in events if not isinstance(event, (yaml.StreamStartEvent, yaml.DocumentEndEvent))
        )
        first = next(self.events)
        if isinstance(first, yaml.StreamEndEvent):
            return YamlDocument(None)
        value = self._value(next(self.events), (key,) if key else (), is_text=_is_text_key(key))
        last = next(self.events)
        if not isinstance(last, yaml.StreamEndEvent):
            self.refuse("a second document begins; keep one", last.start_mark.line)
        shift = 1 if key else 0
        texts = {path[shift:]: text for path, text in self.texts.items()}
        return YamlDocument(value, self.lines, texts, tuple(self.secrets))

    def refuse(self, problem: str, line: int | None) -> NoReturn:
        place = "" if line is None else f", line {line + 1}"
        raise UserError(f"{self.where}{place}: not YAML ({' '.join(problem.split())})")

    def _value(self, event: Any, path: KeyPath, is_text: bool) -> Any:
        line = event.start_mark.line
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse(f"it holds more than {MAX_NODES:,} values", line)
        if len(path) > MAX_DEPTH:
            self.refuse(f"it is nested more than {MAX_DEPTH} deep", line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        before, anchor = self.nodes, event.anchor
        if anchor is not None:
            self.anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path, is_text)
        else:
            kind = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
            if event.tag not in (None, "!", _TAG + kind):
                self.refuse(f"the tag {event.tag} has no meaning here; remove it", line)
            value = self._mapping(path) if kind == "map" else self._sequence(path, is_text)
        if anchor is not None:
            self.anchors[anchor] = (value, self.nodes - before + 1)
        return value

    def _alias(self, event: Any, line: int) -> Any:
        if event.anchor not in self.anchors:
            self.refuse(f"the alias *{event.anchor} has no anchor", line)
        found = self.anchors[event.anchor]
        if found is None:
            self.refuse(f"the alias *{event.anchor} is within its own anchor", line)
        self.nodes += found[1]
        if self.nodes > MAX_NODES:
            self.refuse(f"its aliases stand for more than {MAX_NODES:,} values", line)
        return copy.deepcopy(found[0])

    def _sequence(self, path: KeyPath, is_text: bool) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            place = (*path, str(len(items)))
            self.lines[place] = event.start_mark.line + 1
            items.append(self._value(event, place, is_text))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        inherited: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = event.start_mark.line
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse("a list, a mapping or an alias cannot be a key", line)
            name, is_plain = event.value, event.implicit[0]
            if name in values and not (name == "<<" and is_plain):
                self.refuse(f"the key {name!r} is given a second time", line)
            place = (*path, name)
            self.lines[place] = line + 1
            below = next(self.events)
            is_text = _is_text_key(name) and not isinstance(below, yaml.MappingStartEvent)
            value = self._value(below, place, is_text)
            if name == "<<" and is_plain:
                inherited = {**self._merged(value, line), **inherited}
            else:
                values[name] = value
        return {**inherited, **values}

    def _merged(self, value: Any, line: int) -> dict[str, Any]:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self.refuse("<< merges mappings; give an alias of one", line)
        return {name: item for part in reversed(parts) for name, item in part.items()}

    def _scalar(self, event: Any, path: KeyPath, is_text: bool) -> Any:
        tag, text = event.tag, event.value
        if "environment" in ".".join(path[:-1]).split("."):
            self.secrets.append((event.start_mark.index, event.end_mark.index))
        if tag in ("!", _TAG + "str") or (tag is None and not event.implicit[0]):
            return text
        value = plain_scalar(text)
        if tag is not None:
            kinds = _TYPES.get(tag.removeprefix(_TAG), ())
            if not isinstance(value, kinds) or (kinds != (bool,) and isinstance(value, bool)):
                self.refuse(f"{text!r} with the tag {tag} has no meaning here; remove the tag", event.start_mark.line)
        elif is_text and text not in ("", "~"):
            return text
        is_word = len(text) <= MAX_DIGITS and (text.lower() in YAML_BOOLEANS or _SHORT_FLOAT.fullmatch(text))
        if is_word or not isinstance(value, str):
            self.texts[path] = text
        return value


def plain_scalar(text: str) -> Any:
    """A plain (unquoted) scalar: None, a boolean, an int, a float, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    digits = text.replace("_", "")
    if len(text) <= MAX_DIGITS and _INTEGER.fullmatch(text):
        return int(digits, 0)
    if len(text) <= MAX_DIGITS and _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=[iInN])", "", digits))
    return text


def redact(text: str, places: Sequence[tuple[int, int]] = ()) -> str:
    """A YAML text with `"***"` at these places, and `***` for the passwords in its URLs."""
    for start, end in sorted(places, reverse=True):
        line_end = "\n" if text[:end].endswith("\n") else ""  # after a block scalar
        text = f'{text[:start]}"***"{line_end}{text[end:]}'
    return redact_urls(text)


def redact_source(text: str) -> str:
    """The text of an experiment file without the values of environment variables; its passwords are replaced too."""
    try:
        return redact(text, parse_yaml(text, "").secrets)
    except UserError:
        return redact_urls(text)


def redact_set(word: str) -> str:
    """`KEY=VALUE` with `***` for the value of an environment variable, and for passwords in URLs."""
    key, equals, _ = word.partition("=")
    return f"{key}=***" if equals and "environment" in key.split(".") else redact_urls(word)


def _is_text_key(key: str) -> bool:
    return key.rpartition(".")[2] in TEXT_KEYS
