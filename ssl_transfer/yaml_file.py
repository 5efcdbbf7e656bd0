"""YAML files as their authors mean them: no words that turn into numbers, the line of every key, bounded effort.

YAML 1.1, which PyYAML reads, takes `no` for false, `12:00:00` for 43200, `010` for 8 and `2020-01-01` for a date. Here
they are text, which the key that they are given to accepts or refuses (`ssl_transfer.config`, `ssl_transfer.formats`).
True, false, null, decimal and hexadecimal numbers are read as before.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from ssl_transfer.errors import UserError, redact_urls
from ssl_transfer.files import decode_text, describe_unreadable, read_input

KeyPath = tuple[str, ...]
"""A key of a nested document, such as `("rows", "simsiam", "label")`; an index of a list is a number as text."""
MAX_BYTES, MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 1 << 22, 50, 200_000, 300
"""A larger file is refused; a value counts as often as an alias uses it. A longer number is text."""
TEXT_KEYS = frozenset(("CLASSES", "TRAIN", "TEST", "FOLDER", "IMAGE_SET", "ANNOTATIONS"))
"""Keys whose values, or whose list's items, are names: `CLASSES: [1, on, 010]` are three texts."""
YAML_BOOLEANS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}
"""YAML 1.1's other words for true and false, in lower case: text, unless a key takes a boolean."""
_WORDS = {"": None, "~": None} | {
    spelled: meaning
    for word, meaning in (("null", None), ("true", True), ("false", False))
    for spelled in (word, word.title(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)")
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SHORT_FLOAT = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")
_TAGS = {yaml.ScalarEvent: "str", yaml.SequenceStartEvent: "seq", yaml.MappingStartEvent: "map"}


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
    lines: dict[KeyPath, int] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    secrets: list[tuple[int, int]] = field(default_factory=list)


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
    reader = _Reader(where, yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    try:
        return reader.read(key)
    except yaml.YAMLError as error:
        reader.refuse(str(getattr(error, "problem", None) or error), getattr(error, "problem_mark", None))


class _Reader:
    """Builds a document from the parser's events, one after another."""

    def __init__(self, where: str, events: Iterator[Any]) -> None:
        self.where, self.events = where, events
        self.found = YamlDocument(None)
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}

    def read(self, key: str) -> YamlDocument:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return self.found
        value = self._value(next(self.events), (), _is_text_key(key))
        next(self.events)  # the document's end
        if not isinstance(last := next(self.events), yaml.StreamEndEvent):
            self.refuse("a second document begins; keep one", last.start_mark)
        return YamlDocument(value, self.found.lines, self.found.texts, self.found.secrets)

    def refuse(self, problem: str, mark: Any) -> NoReturn:
        place = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{self.where}{place}: not YAML ({' '.join(problem.split())})")

    def _value(self, event: Any, path: KeyPath, is_text: bool) -> Any:
        mark, before = event.start_mark, self.count
        self._add(1, mark)
        if len(path) > MAX_DEPTH:
            self.refuse(f"it is nested more than {MAX_DEPTH} deep", mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self.refuse(f"the alias *{event.anchor} has no anchor before it", mark)
            value, count = self.anchors[event.anchor]
            self._add(count, mark)
            return copy.deepcopy(value)
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{_TAGS[type(event)]}"):
            self.refuse(f"the tag {event.tag} has no meaning here; remove it", mark)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path, is_text)
        else:
            value = self._mapping(path) if isinstance(event, yaml.MappingStartEvent) else self._list(path, is_text)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def _add(self, count: int, mark: Any) -> None:
        self.count += count
        if self.count > MAX_VALUES:
            self.refuse(f"it holds more than {MAX_VALUES:,} values, with those that its aliases stand for", mark)

    def _list(self, path: KeyPath, is_text: bool) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            place = (*path, str(len(items)))
            self.found.lines[place] = event.start_mark.line + 1
            items.append(self._value(event, place, is_text))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        inherited: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            mark: Any = event.start_mark
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse("a list, a mapping or an alias cannot be a key", mark)
            name, place = event.value, (*path, event.value)
            if name in values:
                self.refuse(f"the key {name!r} is given a second time", mark)
            self.found.lines[place] = mark.line + 1
            below = next(self.events)
            value = self._value(below, place, _is_text_key(name) and not isinstance(below, yaml.MappingStartEvent))
            if name != "<<" or not event.implicit[0]:
                values[name] = value
                continue
            for part in value if isinstance(value, list) else [value]:
                if not isinstance(part, dict):
                    self.refuse("<< merges mappings; give an alias of one", mark)
                inherited = {**part, **inherited}
        return {**inherited, **values}

    def _scalar(self, event: Any, path: KeyPath, is_text: bool) -> Any:
        if "environment" in ".".join(path[:-1]).split("."):
            self.found.secrets.append((event.start_mark.index, event.end_mark.index))
        text = event.value
        if event.tag is not None or not event.implicit[0] or (is_text and text not in ("", "~")):
            return text
        value = plain_scalar(text)
        is_word = len(text) <= MAX_DIGITS and (text.lower() in YAML_BOOLEANS or _SHORT_FLOAT.fullmatch(text))
        if is_word or not isinstance(value, str):
            self.found.texts[path] = text
        return value


def plain_scalar(text: str) -> Any:
    """A plain (unquoted) scalar: None, a boolean, an int, a float, or the text itself."""
    if text in _WORDS or len(text) > MAX_DIGITS:
        return _WORDS.get(text, text)
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        return int(digits, 0)
    return float(re.sub(r"\.(?=[iInN])", "", digits)) if _FLOAT.fullmatch(text) else text


def redact(text: str, places: Sequence[tuple[int, int]] = ()) -> str:
    """A YAML text with `"***"` at these places, and `***` for the passwords in its URLs."""
    for start, end in sorted(places, reverse=True):
        line_end = "\n" if text[:end].endswith("\n") else ""  # after a block scalar
        text = f'{text[:start]}"***"{line_end}{text[end:]}'
    return redact_urls(text)


def redact_set(word: str) -> str:
    """`KEY=VALUE` with `***` for the value of an environment variable, and for passwords in URLs."""
    key, equals, _ = word.partition("=")
    return f"{key}=***" if equals and "environment" in key.split(".") else redact_urls(word)


def _is_text_key(key: str) -> bool:
    return key.rpartition(".")[2] in TEXT_KEYS
