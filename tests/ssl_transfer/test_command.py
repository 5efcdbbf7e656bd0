"""`python -m ssl_transfer VERB` is the tool of that name, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_transfer.__main__ import VERBS
from ssl_transfer.environment import ROOT


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv[0] = 'ssl-transfer'\n"
    code += "from ssl_transfer.__main__ import main\n"
    check = "try: main()\nfinally: assert not {'torch', 'detectron2'} & set(sys.modules)"
    return subprocess.run([sys.executable, "-c", code + check, *words], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_alone_it_lists_every_verb_with_a_line(tmp_path: Path, words: list[str]) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 0 and not done.stderr
    for verb in VERBS:
        assert any(
            line.split()[0] == verb and len(line.split()) > 4 for line in done.stdout.splitlines() if line.strip()
        )


def test_a_verb_for_each_tool() -> None:
    tools = {file.stem.replace("_", "-") for file in (ROOT / "tools").glob("*.py")} - {"--init--"}
    assert tools - {"install-detectron2"} == set(VERBS)


def test_an_unknown_verb_is_one_line_with_the_similar_one(tmp_path: Path) -> None:
    done = run(tmp_path, "convrt")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean convert?" in done.stderr


def test_help_and_errors_name_what_the_user_typed(tmp_path: Path) -> None:
    done = run(tmp_path, "launch", "plan", "--help")
    assert done.stdout.startswith("usage: ssl-transfer launch plan ") and "python tools/" not in done.stdout
    assert "ssl-transfer lr-search choose" in run(tmp_path, "lr-search", "--help").stdout
    words = [sys.executable, "-m", "ssl_transfer", "convert", "--help"]
    by_module = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    assert by_module.startswith("usage: python -m ssl_transfer convert ")
    script = subprocess.run([sys.executable, "tools/convert.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert script.stdout.startswith("usage: python tools/convert.py ") and "python tools/convert.py IN" not in by_module


def test_versions_are_told_without_importing_what_is_named(tmp_path: Path) -> None:
    for words in (["--version"], ["transfer", "--version"]):
        done = run(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in ("ssl-transfer ", "commit", "torch ", "detectron2 ", "python "))


@pytest.mark.parametrize("words", [["transfer"], ["launch"], ["launch", "plan"], ["data", "check"]])
def test_configs_are_listed(tmp_path: Path, words: list[str]) -> None:
    done = run(tmp_path, *words, "--list-configs")
    assert done.returncode == 0 and ("  demo " if words[0] == "launch" else "  voc07 ") in done.stdout


def test_a_user_file_named_like_ours_hides_nothing(tmp_path: Path) -> None:
    for name in ("common", "tools", "transfer", "pretrain"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user’s own')")
    words = ["-m", "ssl_transfer", "launch", "plan", "demo", "--set", "data.images=x", "--set", "data.detection=y"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "finetune.scratch.voc07_fpn.s1" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "expected"), [("con", "convert"), ("launch sub", "submit"), ("launch submit x --clu", "--cluster")]
)
def test_a_shell_completes_verbs_and_what_follows_them(tmp_path: Path, line: str, expected: str) -> None:
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": f"ssl-transfer {line}", "COMP_POINT": str(len(f"ssl-transfer {line}")), "COMP_TYPE": "9"}
    code = "import sys; sys.argv = ['ssl-transfer']; from ssl_transfer.__main__ import main; main()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, cwd=ROOT, check=True)
    assert expected in (tmp_path / "answer").read_text().split()
