"""docs/troubleshooting.md: the messages are those that the source prints."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_USAGE
from tools import convert, transfer

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


@functools.cache
def texts() -> frozenset[str]:
    """Every text of the source, with … for what is put into it."""
    found = set()
    for package in ("ssl_transfer", "pretrain", "transfer", "tools"):
        for file in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.add("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    found.add(re.sub(r"%[sdg]", "…", node.value))
    return frozenset(found)


def test_there_are_twenty_messages() -> None:
    assert len(MESSAGES) == len(set(MESSAGES)) >= 20


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_the_source_s(message: str) -> None:
    """One text holds the words that do not change, in their order; a remedy may be a text of its own."""
    fixed = [part for part in message.split("…") if part.strip(" :;,.()")]
    assert any(len(part) >= 9 for part in fixed)
    pattern = re.compile(".*".join(re.escape(part) for part in fixed), re.DOTALL)
    assert any(pattern.search(text) for text in texts())


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, which a message of the page describes."""
    (line,) = capsys.readouterr().err.splitlines()
    patterns = (".*".join(re.escape(part) for part in message.split("…")) for message in MESSAGES)
    assert sum(bool(re.search(pattern, line)) for pattern in patterns) == 1, line
    return line


def test_lines_that_tools_print_are_found_on_the_page(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ["--config-file", str(root / "configs/transfer/voc07.yaml"), "--seed", "1", "--output", "out"]
    cases = {
        "SOLVER.BASE_LRR": (transfer.main, [*task, "--weights", "scratch", "SOLVER.BASE_LRR", "1"]),
        "SOLVER.BASE_LR": (transfer.main, [*task, "--weights", "scratch", "SOLVER.BASE_LR"]),
        "cut.pth": (convert.main, ["cut.pth", "out.pkl"]),
    }
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    for name, (main, words) in cases.items():
        assert call_main(main, words) == EXIT_USAGE and name in shown(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.pkl").exists()
