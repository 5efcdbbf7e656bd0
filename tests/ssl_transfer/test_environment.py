"""Where a result came from."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_transfer import environment


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@e"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(environment, "ROOT", tmp_path.resolve())
    return tmp_path


def test_commit_is_the_head_and_says_when_files_were_changed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert environment.commit() == head
    (checkout / "untracked").write_text("")
    assert environment.commit() == head
    (checkout / "file").write_text("2")
    assert environment.commit() == f"{head}-dirty"


def test_another_projects_commit_is_not_ours(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = checkout / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(environment, "ROOT", inside.resolve())
    assert environment.commit() == "unknown"


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.commit() == "unknown"


def test_describe_names_what_runs() -> None:
    block = environment.describe()
    assert block["python"] == platform.python_version()
    assert block["torch"] == environment.version_of("torch")
    assert block["devices"] and block["host"] and block["commit"]


def test_a_missing_package_has_no_version() -> None:
    assert environment.version_of("no-such-package-here") is None


def test_describe_imports_no_torch(root: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ssl_transfer import environment; environment.describe(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)
