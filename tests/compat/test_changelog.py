"""CHANGELOG.md names what earlier runs have to know; the defaults' table and the kept folders say what that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_transfer.formats.defaults import DEFAULTS_FILE
from ssl_transfer.formats.run_only import STAGES
from tests.compat.kept import FOLDERS
from transfer.experiment.spec import Section

TEXT = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_with_another_name_default_or_none_is_named(stage: str) -> None:
    table = json.loads(DEFAULTS_FILE.read_text())[stage]
    names = {name for new, former in table["names"].items() for name in (new, *former)}
    keys = names | set(table["first"]) | set(table["removed"])
    assert [key for key in sorted(keys) if f"`{key}`" not in TEXT] == []


def test_renamed_keys_of_an_experiment_file_are_named() -> None:
    renamed = {old: new for section in Section.__subclasses__() for old, new in section.renamed_keys.items()}
    assert len(renamed) >= 3
    for old, new in renamed.items():
        assert f"`{old}`" in TEXT and f"`{new}`" in TEXT


def test_every_kept_release_has_its_section() -> None:
    assert FOLDERS
    for folder in FOLDERS:
        assert f"## {folder.name}\n" in TEXT and f"tests/compat/{folder.name}" in TEXT
