"""Citation, workflows, pre-commit: valid, and what they name or call exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_transfer import __version__

CFF_REQUIRED = {"cff-version", "message", "title", "authors"}  # Citation File Format 1.2.0, "Valid keys"
CFF_TYPES = {"conference-paper", "software"}


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def pyproject(root: Path) -> str:
    return (root / "pyproject.toml").read_text()


def test_the_citation_is_complete_and_of_this_version(root: Path) -> None:
    found = read(root / "CITATION.cff")
    assert found.keys() >= CFF_REQUIRED and found["cff-version"] == "1.2.0"
    for entry in (found, *found["references"]):
        assert entry["title"] and entry["type"] in CFF_TYPES
        assert all(author.get("name") or author["family-names"] for author in entry["authors"])
    assert found["version"] == __version__
    for key, name in (("title", "name"), ("license", "license")):
        assert f'\n{name} = "{found[key]}"\n' in pyproject(root)


@pytest.mark.parametrize("name", ["ci", "weekly"])
def test_a_workflow_runs_scripts_that_exist(root: Path, name: str) -> None:
    workflow = read(root / f".github/workflows/{name}.yml")
    assert workflow["name"] == name and True in workflow  # YAML 1.1 reads `on` as true
    ran = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    scripts = [root / line.split()[0] for line in ran if line.startswith(".ci/")]
    assert scripts and all(script.stat().st_mode & 0o100 for script in scripts)


def test_the_weekly_workflow_covers_the_lowest_python(root: Path) -> None:
    (job,) = read(root / ".github/workflows/weekly.yml")["jobs"].values()
    cases = {case["versions"]: case["python"] for case in job["strategy"]["matrix"]["include"]}
    (lowest,) = re.findall(r'requires-python = ">=([\d.]+)"', pyproject(root))
    assert cases.keys() == {"lowest", "newest"} and cases["lowest"] == lowest


def test_the_lowest_versions_are_those_of_pyproject(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / ".ci/versions"), "lowest", "--print"], capture_output=True, text=True, check=True
    )
    required = re.findall(r'"([\w.-]+)>=([\w.]+)"', pyproject(root).partition("\ndependencies = [")[2])
    assert len(required) > 20
    assert sorted(done.stdout.split()) == sorted(f"{package}=={version}" for package, version in required)


def test_pre_commit_s_hooks_are_local_programs(root: Path) -> None:
    (repo,) = read(root / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        program, *words = shlex.split(hook["entry"])
        assert {"id", "name", "entry", "language"} <= hook.keys() and hook["language"] == "system"
        assert program in ("python3", ".venv/bin/ruff")
        assert all((root / word).is_file() for word in words if "/" in word)
