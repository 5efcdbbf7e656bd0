"""YAML as people write it: no word turns into a number, every value has its line, and hostile files end quickly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_transfer.errors import UserError
from ssl_transfer.yaml_file import parse_yaml, plain_scalar, read_yaml, redact, redact_set


@pytest.mark.parametrize(
    "text", ["no", "off", "yes", "ON", "y", "12:00:00", "1:30", "-1:30", "190:20:30.15", "010", "0777", "0o17"]
)
def test_what_yaml_1_1_turns_into_a_number_is_text(text: str) -> None:
    assert plain_scalar(text) == text


@pytest.mark.parametrize("text", ["2020-01-01", "2020-13-45", "2001-12-14t21:59:43.10-05:00", "=", "1e-4", "1.5e3"])
def test_dates_and_short_floats_are_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "f").value == {"a": text}


@pytest.mark.parametrize(
    "text",
    ["0", "-12", "+3", "1_000", "0x1F", "0b101", "1.5", ".5", "1.", "1.5e+3", ".inf", "-.INF", "~", "Null", "TRUE"],
)
def test_numbers_and_words_that_mean_the_same_everywhere_are_read_as_before(text: str) -> None:
    assert plain_scalar(text) == yaml.safe_load(text)
    assert type(plain_scalar(text)) is type(yaml.safe_load(text))


def test_keys_are_text_and_names_of_classes_are_too() -> None:
    text = "1: a\non: b\nTRANSFER:\n  CLASSES: [1, on, 010, 1e3, null, ~]\n  TEST: {SIZE: 3}\nTRANSFER.CLASSES: [2]\n"
    assert parse_yaml(text, "f").value == {
        "1": "a",
        "on": "b",
        "TRANSFER": {"CLASSES": ["1", "on", "010", "1e3", "null", None], "TEST": {"SIZE": 3}},
        "TRANSFER.CLASSES": ["2"],
    }


def test_every_key_and_item_has_its_line_and_its_spelling() -> None:
    document = parse_yaml("a:\n  b:\n  - 1_0\n  - yes\nc: {d: 'x'}\n", "f")
    assert document.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "b", "0"): 3,
        ("a", "b", "1"): 4,
        ("c",): 5,
        ("c", "d"): 5,
    }
    assert document.texts == {("a", "b", "0"): "1_0", ("a", "b", "1"): "yes"}


def test_anchors_and_merge_keys_are_read() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nboth: {<<: [{x: 5}, *b]}\nlist: &l [1]\nagain: *l\n"
    value = parse_yaml(text, "f").value
    assert value["more"] == {"x": 1, "y": 3} and value["both"] == {"x": 5, "y": 2}
    value["again"].append(2)
    assert value["list"] == [1]


HOSTILE = {
    "alias bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "alias",
    ),
    "merge bomb": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{k: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
        "alias",
    ),
    "loop": ("a: &a [*a]\n", "line 1.*anchor"),
    "flow depth": ("[" * 100_000, "nest"),
    "block depth": ("- " * 50_000, "nest"),
    "map depth": ("".join(f"{' ' * i}a:\n" for i in range(2000)), "nest"),
    "many": ("[" + "1," * 300_000 + "]", "more than 200,000 values"),
    "list key": ("? [a, b]\n: 1\n", "line 1.*cannot be a key"),
    "map key": ("{{a: 1}: 2}\n", "line 1.*cannot be a key"),
    "tag": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "line 2.*tag"),
    "binary": ("a: !!binary aGVsbG8=\n", "line 1.*tag"),
    "set": ("a: !!set {b, c}\n", "line 1.*tag"),
    "false tag": ("a: !!int x\n", "line 1.*tag"),
    "nul": ("a: \0\n", "not YAML"),
    "no anchor": ("a: *b\n", "alias"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2.*second document"),
    "bad merge": ("<<: 3\n", "line 1.*<<"),
    "tab": ("a:\n\tb: 1\n", "line 2: not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line_within_a_second(name: str) -> None:
    text, message = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text, "f.yaml")
    assert time.process_time() - start < 3
    assert str(caught.value).startswith("f.yaml") and "\n" not in str(caught.value)


def test_a_number_of_a_million_digits_is_text() -> None:
    digits = "9" * 1_000_000
    assert parse_yaml(f"a: {digits}", "f").value == {"a": digits}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_and_line_ends_of_windows(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("a: é\r\nb: 1\r\n".encode(encoding))
    document, text = read_yaml(file)
    assert document.value == {"a": "é", "b": 1} and text == "a: é\nb: 1\n"


def test_values_of_environment_variables_are_not_recorded() -> None:
    text = (
        "name: a\nenvironment:\n  TOKEN: hunter2 # mine\n  OTHER: |\n    hunter3\nresources:\n"
        "  default: {environment: {KEY: 'hunter4', N: 5}}\nnotes: git+https://me:hunter5@host/x and http://a.b/c@d\n"
    )
    found = redact(text, parse_yaml(text, "f").secrets)
    assert "hunter" not in found and "me:h" not in found and "http://a.b/c@d" in found
    value: Any = parse_yaml(found, "f").value
    assert value["environment"] == {"TOKEN": "***", "OTHER": "***"} and value["name"] == "a"
    assert value["resources"]["default"]["environment"] == {"KEY": "***", "N": "***"}
    assert redact(found, parse_yaml(found, "f").secrets) == found
    assert redact_set("environment.TOKEN=hunter2") == "environment.TOKEN=***"
    assert redact_set("resources.default.environment={A: hunter2}") == "resources.default.environment=***"
    assert redact_set("data.images=/x") == "data.images=/x"
