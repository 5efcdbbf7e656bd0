from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ConfigDict, Field, field_validator

from ssl_transfer.errors import UserError
from ssl_transfer.formats import FileFormat


class Weights(FileFormat):
    model_config = ConfigDict(extra="forbid")

    path: str
    mean: tuple[float, ...] = Field(default=(0.5,), strict=False)


class Record(FileFormat):
    format: Literal["record/1"] = "record/1"
    seed: int
    lr: float | None = None
    weights: Weights | None = None
    parts: dict[str, Weights] = Field(default_factory=dict)

    @field_validator("seed")
    @classmethod
    def _check_seed(cls, seed: int) -> int:
        if seed < 0:
            raise ValueError("must not be negative")
        return seed


def test_a_file_is_read_as_it_was_written_unknown_keys_included(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "record.json"
    content = {"format": "record/1", "seed": 3, "parts": {"a": {"path": "x", "mean": [1.0, 2.0]}}, "newer": [1]}
    record = Record.parse(content, file)
    record.write(file)
    assert json.loads(file.read_text()) == content
    assert Record.read(file) == record
    assert record.parts["a"].mean == (1.0, 2.0)


def test_an_optional_key_is_written_only_if_it_was_set() -> None:
    assert Record(seed=1).as_dict() == {"format": "record/1", "seed": 1, "parts": {}}
    assert Record(seed=1, lr=None).as_dict()["lr"] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["record.json", "seed", "missing"]),
        ({"seed": "3"}, ["seed", "integer", "'3'"]),
        ({"seed": True}, ["seed", "integer", "True"]),
        ({"seed": 3, "lr": "fast"}, ["lr", "number", "'fast'"]),
        ({"seed": -1}, ["seed: must not be negative"]),
        ({"seed": 3, "format": "record/2"}, ["format", "record/1", "record/2"]),
        ({"seed": 3, "weights": {"pth": "x"}}, ["weights.pth", "unknown key", "path", "1 more"]),
        ({"seed": 3, "parts": {"a": {"path": "x", "men": []}}}, ["parts.a.men", "unknown key", "mean"]),
        ({"seed": 3, "parts": {"a": {"path": "x", "mean": [1, "b"]}}}, ["parts.a.mean.1", "'b'"]),
        ([1], ["record.json", "keys and values", "list"]),
        (None, ["record.json", "keys and values"]),
    ],
)
def test_a_mistake_is_one_line_with_file_key_reason_and_remedy(content: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Record.parse(content, "record.json", "write it again")
    message = str(caught.value)
    assert message.startswith("record.json: ") and message.endswith("; write it again") and "\n" not in message
    for word in words:
        assert word in message


def test_a_mistake_in_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "record.yaml"
    file.write_text("seed: 1\nparts:\n  a:\n    path: x\n    mean:\n    - 1\n    - b\n")
    with pytest.raises(UserError, match=r"record.yaml, line 7: parts.a.mean.1: "):
        Record.read(file)
    file.write_text("seed: 1\nparts:\n  a: {}\n")
    with pytest.raises(UserError, match=r"record.yaml, line 3: parts.a.path: is missing"):
        Record.read(file)
    file.write_text("seed: 1\nparts:\n  a: {path: x}\n")
    with pytest.raises(UserError, match=r"record.yaml: format: is missing; this is not record/1"):
        Record.read(file)
    file.write_text("format: record/1\nseed: 1\nparts:\n  a: {path: x}\n")
    assert Record.read(file).parts["a"].path == "x"


def test_plain_yaml_is_read_in_the_type_of_its_key(tmp_path: Path) -> None:
    file = tmp_path / "record.yaml"
    file.write_text("format: record/1\nseed: 1\nlr: 1e-4\nparts:\n  no: {path: 010}\n  2020-13-45: {path: 1_0}\n")
    record = Record.read(file)
    assert record.lr == 1e-4
    assert {name: part.path for name, part in record.parts.items()} == {"no": "010", "2020-13-45": "1_0"}
    file.write_text('format: record/1\nseed: 1\nlr: "1e-4"\n')
    with pytest.raises(UserError, match=r"record.yaml, line 3: lr: must be a number, not '1e-4'"):
        Record.read(file)


def test_a_missing_or_damaged_file_is_a_user_error(tmp_path: Path) -> None:
    for name, text in (("absent.json", None), ("cut.json", "{"), ("bad.yaml", "a: [")):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            Record.read(tmp_path / name)


def test_importing_the_formats_imports_neither_torch_nor_detectron2() -> None:
    code = (
        "import importlib, pkgutil, sys, ssl_transfer.formats as f\n"
        "names = {m.name for m in pkgutil.iter_modules(f.__path__)}\n"
        "for n in names - {'detections'}: importlib.import_module('ssl_transfer.formats.' + n)\n"
        "print([m for m in ('torch', 'detectron2', 'numpy') if m in sys.modules])\n"
        "import ssl_transfer.formats.detections\n"  # arrays
        "print([m for m in ('torch', 'detectron2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[]", "[]"]
