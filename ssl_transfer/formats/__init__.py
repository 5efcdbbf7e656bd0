"""Base class of the models in this package: one pydantic model for each file that passes between rooms. No torch."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from typing_extensions import Self

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import JSON_LIMIT, read_json, write_json
from ssl_transfer.yaml_file import YAML_BOOLEANS, KeyPath, YamlDocument, read_yaml


class FileFormat(BaseModel):
    """A file's content, or a section of it.

    Types are strict: `"1"` is no number and `true` is no integer; a float field takes an integer and stores a float.
    A tuple field needs `Field(strict=False)`, because JSON and YAML only have lists. Unknown keys are accepted and
    written again, so that files of newer versions can be read; a model that refuses them sets `extra="forbid"`.
    An optional key whose default is None is written only if it was set.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @model_serializer(mode="wrap")
    def _omit_unset_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = type(self).model_fields.keys() - self.model_fields_set
        return {key: value for key, value in serialize(self).items() if value is not None or key not in unset}

    @classmethod
    def parse(cls, data: Any, where: str | os.PathLike[str], remedy: str = "") -> Self:
        """Validate content that was read already.

        Args:
            data: plain Python values, as JSON or YAML gives them.
            where: the file (and line), for the message.
            remedy: what the user should do; ends the message.

        Raises:
            UserError: a key is missing or has a wrong type or value; one line with file, key and reason.
        """
        return cls._validate(data, str(where), YamlDocument(data), remedy)

    @classmethod
    def read(cls, path: str | os.PathLike[str], remedy: str = "") -> Self:
        """Read and validate a JSON file, or a YAML file (`.yaml`, `.yml`).

        Raises:
            UserError: the file is missing, damaged or not valid; one line with file, line (YAML), key and reason.
        """
        if Path(path).suffix in (".yaml", ".yml"):
            document = read_yaml(path)[0]
            document = replace(document, value={}) if document.value is None else document
        else:
            document = YamlDocument(read_json(path, JSON_LIMIT))
        found = cls._validate(document.value, str(path), document, remedy)
        if "format" in cls.model_fields and "format" not in found.model_fields_set:
            reason = f"{path}: format: is missing; this is not {cls.model_fields['format'].default}"
            raise UserError(f"{reason}; {remedy}" if remedy else reason)
        return found

    @classmethod
    def read_or_none(cls, path: str | os.PathLike[str]) -> Self | None:
        """The file's content; None if it is missing or damaged."""
        with contextlib.suppress(UserError):
            return cls.read(path) if os.path.lexists(path) else None
        return None

    @classmethod
    def _validate(cls, data: Any, where: str, document: YamlDocument, remedy: str) -> Self:
        try:
            return validate_yaml(cls, data, document.texts)
        except ValidationError as error:
            reason = explain_validation_error(error, cls, lambda key: locate(key, where, document.lines))
            raise UserError(f"{reason}; {remedy}" if remedy else reason) from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values with the file's keys, ready for JSON or YAML."""
        # Not mode="json": that copies every key, and a pickle of the content would contain each of them many times.
        content: dict[str, Any] = _lists_for_tuples(self.model_dump(by_alias=True))
        return content

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as indented JSON, atomically."""
        write_json(path, self.as_dict())


class SealedFormat(FileFormat):
    """A file that holds the digest of its own content, so that a reader sees a flipped bit or an edit.

    It protects against damage and accidents, not against somebody who computes the digest anew. Files of releases that
    wrote none are read as before.
    """

    digest: str | None = Field(
        default=None,
        description="SHA-256 (hex) of the other keys as JSON with sorted keys and no blanks; absent in older files",
    )

    @classmethod
    def _validate(cls, data: Any, where: str, document: YamlDocument, remedy: str) -> Self:
        if not is_sealed(data, cls):
            raise UserError(f"{where} is damaged or was edited: it does not have its digest; {remedy or SEAL_REMEDY}")
        return super()._validate(data, where, document, remedy)

    @classmethod
    def parse_unsealed(cls, data: Any, where: str | os.PathLike[str]) -> Self:
        """Validate content without looking at its digest: for a reader that marks what was altered."""
        return super()._validate(data, str(where), YamlDocument(data), "")

    def as_sealed_dict(self) -> dict[str, Any]:
        """`as_dict` with the content's digest as its last key."""
        content = {key: value for key, value in self.as_dict().items() if key != "digest"}
        return {**content, "digest": digest_of(content)}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as indented JSON with its digest, atomically."""
        write_json(path, self.as_sealed_dict())


SEAL_REMEDY = "restore it from a copy, or remove it and run again what writes it"
HEX_DIGEST = re.compile("[0-9a-f]{64}")


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex of content as JSON with sorted keys and no blanks; its `digest` is left out."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "digest"}))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def is_sealed(data: Any, model: type[BaseModel]) -> bool:
    """Whether content has the digest that it holds, or holds none (an older file).

    A digest whose own name was damaged is an unknown key with 64 hex digits.
    """
    if not isinstance(data, dict):
        return True
    if data.get("digest") is not None:
        return bool(data["digest"] == digest_of(data))
    unknown = [value for key, value in data.items() if key not in model.model_fields]
    return not any(isinstance(value, str) and HEX_DIGEST.fullmatch(value) for value in unknown)


def _lists_for_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_for_tuples(inner) for key, inner in value.items()}
    return [_lists_for_tuples(inner) for inner in value] if isinstance(value, (list, tuple)) else value


Model = typing.TypeVar("Model", bound=BaseModel)


def validate_yaml(model: type[Model], data: Any, texts: Mapping[KeyPath, str]) -> Model:
    """Validate content of a YAML file in the types that its keys have.

    Where a key takes text, a number or a boolean is the text that is written (`texts`); where it takes a boolean, `yes`
    and `on` are true; where it takes a number, so is `1e-4`.

    Raises:
        ValidationError: what is then still wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        content = copy.deepcopy(data)
        changed = [_reinterpret(content, problem, texts) for problem in error.errors()]  # all of them
        if not any(changed):
            raise
    return model.model_validate(content)


def _reinterpret(content: Any, problem: Any, texts: Mapping[KeyPath, str]) -> bool:
    """Replace the value of a problem by what its text means to its key; False if it means nothing else."""
    path, kind = problem["loc"], problem["type"]
    written = texts.get(tuple(map(str, path)), "")
    meaning: Any = written if kind == "string_type" and problem["input"] is not None else None
    if kind == "bool_type":
        meaning = YAML_BOOLEANS.get(written.lower())
    elif kind == "float_type" and "e" in written.lower():
        with contextlib.suppress(ValueError):
            meaning = float(written)
    if not written or meaning is None:
        return False
    for part in path[:-1]:
        content = content[part]
    content[path[-1]] = meaning
    return True


def locate(key: KeyPath, path: str, lines: Mapping[KeyPath, int]) -> str:
    """`FILE, line N` of a key or of its nearest parent with a known line, else the file."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{path}, line {lines[key[:length]]}"
    return path


def explain_validation_error(
    error: ValidationError, model: type[BaseModel], locate_key: Callable[[KeyPath], str] | None = None
) -> str:
    """The first mistake as one line, and how many more there are.

    Args:
        error: raised by `model`.
        model: the class whose valid keys are suggested in place of an unknown one.
        locate_key: the place of a key, which the line begins with; None: the line begins with the key.
    """
    # A misspelt key is often missing, too: the wrong spelling says more.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    # "[key]" marks the key of a mapping and is no key itself.
    key = tuple(str(part) for part in problems[0]["loc"] if part != "[key]")
    reason = _reason(problems[0], key, model)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    line = f"{'.'.join(key)}: {reason}{more}" if key else f"{reason}{more}"
    return line if locate_key is None else f"{locate_key(key)}: {line}"


def _reason(problem: Any, key: KeyPath, model: type[BaseModel]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(key[-1], _valid_keys(key[:-1], model))}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must hold keys and values, not {'null' if value is None else type(value).__name__}"
    shown = "" if isinstance(value, (dict, list)) else f", not {value!r}"
    return problem["msg"].replace("Input should be", "must be").replace("valid ", "") + shown


def _valid_keys(key: KeyPath, model: type[BaseModel]) -> list[str]:
    """The valid keys of the section that `key` leads to."""
    current: Any = model
    for part in key:
        if _is_model(current):
            field = current.model_fields.get(part)
            current = _extra_value(current) if field is None else field.annotation
        else:  # a mapping with free keys, or a list
            current = typing.get_args(current)[-1] if typing.get_args(current) else None
        current = _without_none(current)
    return list(current.model_fields) if _is_model(current) else []


def _extra_value(model: type[BaseModel]) -> Any:
    """The type of the values under free keys, where a model declares `__pydantic_extra__: dict[str, …]`."""
    declared = inspect.get_annotations(model, eval_str=True).get("__pydantic_extra__")
    return typing.get_args(declared)[-1] if declared else None


def _without_none(annotation: Any) -> Any:
    """`Section` for `Section | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((a for a in typing.get_args(annotation) if a is not type(None)), annotation)
    return annotation


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
