"""README and docs: links lead somewhere, commands exist with the options shown, generated pages are current."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_transfer.config import dotted_keys
from ssl_transfer.config_files import find_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMAND = re.compile(
    r"(?:(?:python|srun|torchrun)[^\n`]*? tools/(?P<file>[a-z]\w+)\.py"
    r"|(?:ssl-transfer|-m ssl_transfer) (?P<verb>[a-z-]+))"
    r"(?P<words>[^\n\"`|]*)"
)
FOLDERS = {"pretrain": "pretrain", "evaluate": "evaluation"}
"""The folder of configs/ that `--config-file` of a tool names a file of."""
CONFIG = re.compile(r"(--config-file|--overlay|^(?:plan|submit|status|logs|cancel|retry)) +([\w./]+)(?= |$)")
NAME = {"argvalues": PAGES, "ids": lambda page: str(page.relative_to(ROOT))}


def text_of(page: Path) -> str:
    """A page's text with continued lines joined."""
    return re.sub(r"\\\n\s*", "", page.read_text())


def commands() -> list[tuple[str, str, str]]:
    """(page, tool, its words) of every command line on every page, in the checkout's spelling and in the wheel's."""
    found = ((page.name, match) for page in PAGES for match in COMMAND.finditer(text_of(page)))
    return [(page, m["file"] or m["verb"].replace("-", "_"), m["words"]) for page, m in found]


@functools.cache
def help_of(tool: str, verb: str) -> str:
    """What `--help` of a tool (and verb) prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(f"tools.{tool}").main([*filter(None, [verb]), "--help"])
    return out.getvalue()


def test_there_are_commands() -> None:
    assert len(commands()) > 60


@pytest.mark.parametrize(("page", "tool", "words"), sorted(set(commands())))
def test_a_command_exists_with_its_options(page: str, tool: str, words: str) -> None:
    assert (ROOT / "tools" / f"{tool}.py").is_file()
    split = words.split("  #")[0].split()
    verb = split[0] if tool in ("launch", "data") and split and re.fullmatch(r"[a-z]+", split[0]) else ""
    for word in split:
        if re.fullmatch(r"--[a-z-]+", word):
            assert re.search(rf"{re.escape(word)}\b", help_of(tool, verb)), f"{page}: {tool} has no {word}"
    for option, name in CONFIG.findall(" ".join(split)):
        recipes = "transfer" if split[0] == "roi" else FOLDERS.get(tool, "transfer")  # a probe takes a task
        folder = {"--config-file": recipes, "--overlay": "overlays"}.get(option, "experiments")
        if not name.startswith("own/") and name not in ("F", "FILE"):
            assert find_config(name, folder).is_file(), f"{page}: {name}"


@pytest.mark.parametrize("page", **NAME)
def test_links_lead_somewhere(page: Path) -> None:
    for target, fragment in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", page.read_text()):
        if target.startswith("http"):
            continue
        found = page if not target else page.parent / target
        assert found.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert fragment[1:] in slugs, f"{page.name} links to {target}{fragment}"


@pytest.mark.parametrize("page", **NAME)
def test_shell_blocks_are_valid(page: Path) -> None:
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_every_page_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text())
        if not target.startswith("http")
    }
    assert not [str(page) for page in PAGES[1:] if page not in linked]


@pytest.mark.parametrize("script", ["generate", "picture"])
def test_what_is_generated_is_current(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"docs/{script}.py", "--check"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def valid_keys() -> frozenset[str]:
    """Every dotted key of the three configs, and every section."""
    keys: set[str] = set()
    for module in ("pretrain.keys", "pretrain.evaluation.config", "transfer.engine.config"):
        keys |= set(dotted_keys(importlib.import_module(module).defaults()))
    return frozenset(keys | {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 1)})


@pytest.mark.parametrize("page", **NAME)
def test_config_keys_on_a_page_exist(page: Path) -> None:
    methods = {"BARLOW_TWINS.REDUNDANCY"}  # the worked example of a method that is not shipped
    named = set(re.findall(r"`([A-Z][A-Z_]+(?:\.[A-Z][A-Z0-9_]+)+)", page.read_text()))
    assert named <= valid_keys() | methods


@pytest.mark.parametrize("page", **NAME)
def test_source_files_named_on_a_page_exist(page: Path) -> None:
    tops = "ssl_transfer|pretrain|transfer|tools|configs|tests|benchmarks|docs"
    for path in re.findall(rf"`((?:{tops})/[\w./]+)`", page.read_text()):
        example = path in ("pretrain/methods/barlow_twins.py",)
        assert example or (ROOT / path).exists(), f"{page.name} names {path}"
