"""What `--help` shows can be pasted and parsed; a resolved config says where each value came from."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ssl_transfer.console import Parser, call_main, verb_examples
from tools import compare, convert, data, doctor, evaluate, launch, lr_search, pretrain, table, transfer

TOOLS = {
    module.__name__.rpartition(".")[2]: module
    for module in (compare, convert, data, doctor, evaluate, launch, lr_search, pretrain, table, transfer)
}
VERBS = [("launch", verb) for verb in ("init", "plan", "submit", "retry", "status", "logs", "cancel")]
VERBS += [("data", verb) for verb in ("toy", "scenes", "check", "download", "split", "import")]


class Parsed(Exception):
    """The words were understood."""


def examples(text: str) -> list[list[str]]:
    """The commands of a help text, each as a shell reads it."""
    lines = text.partition("\nexamples:\n")[2].partition("\n\n")[0].replace("\\\n", " ").splitlines()
    commands = [line.strip() for line in lines if line.startswith("  ") and not line.strip().startswith("#")]
    return [shlex.split(line) for line in commands if line not in ("done",) and not line.startswith("for ")]


@pytest.fixture
def stop_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)

        def parse(self: Parser, *args: object, original: Callable[..., object] = original) -> None:
            original(self, *args)
            raise Parsed

        monkeypatch.setattr(Parser, name, parse)
    for name in ("_plan", "_submit", "_status", "_logs", "_cancel", "_init"):

        def run(*_: object) -> None:
            raise Parsed

        monkeypatch.setattr(launch, name, run)


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize(("tool", "verb"), [*((name, "") for name in TOOLS), *VERBS])
def test_every_example_of_a_help_text_can_be_pasted(
    root: Path,
    tmp_path: Path,
    tool: str,
    verb: str,
    columns: str,
    stop_after_parsing: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(tmp_path)
    Path("own_task.yaml").touch()
    with pytest.raises(SystemExit):
        TOOLS[tool].main([*([verb] if verb else []), "--help"])
    found = examples(capsys.readouterr().out)
    assert found
    for words in found:
        start = next(place for place, word in enumerate(words) if re.fullmatch(r"tools/\w+\.py", word))
        name = Path(words[start]).stem
        assert not verb or (name, words[start + 1]) == (tool, verb), "an example of another verb"
        with pytest.raises(Parsed):
            TOOLS[name].main(words[start + 1 :])
        for word in words:
            assert not word.startswith("configs/") or (root / word).exists()


def test_the_examples_of_a_verb_keep_their_comment_and_their_continued_lines() -> None:
    text = (
        "examples:\n  # first\n  a.py plan x \\\n      --more\n  a.py run\n  # last\n  python a.py plan y\n\nexit: 0\n"
    )
    kept = ["examples:", "  # first", "  a.py plan x \\", "      --more", "  # last", "  python a.py plan y"]
    assert verb_examples(text, "plan").splitlines() == kept


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_no_torch(root: Path, tool: str) -> None:
    """So that it answers at once; `make bench` says how fast."""
    code = (
        f"import sys; from tools.{tool} import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("launch.py sub", "submit"), ("launch.py submit x.yaml --clu", "--cluster"), ("transfer.py --rol", "--role")],
)
def test_a_shell_completes_verbs_and_options(root: Path, tmp_path: Path, line: str, expected: str) -> None:
    tool, rest = line.split(" ", 1)
    script = root / "tools" / tool
    assert "PYTHON_ARGCOMPLETE_OK" in script.read_text()[:1024], "how argcomplete knows that it may start it"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": f"{script} {rest}", "COMP_POINT": str(len(f"{script} {rest}")), "COMP_TYPE": "9"}
    subprocess.run([sys.executable, str(script)], env={**os.environ, **asked}, check=True, capture_output=True)
    assert expected in (tmp_path / "answer").read_text().split()


def test_a_misspelt_required_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-file", "voc07", "--weights", "b", "--output", "c", "--sed", "1"]
    assert call_main(transfer.main, words) == 2
    assert "did you mean --seed?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "words", "config", "expected"),
    [
        (
            pretrain.main,
            ["SOLVER.EPOCHS", "3"],
            "configs/pretrain/simsiam_r50_b256_200ep_base.yaml",
            {"SOLVER.EPOCHS": (3, "command line"), "DATA.SIZE": (64, "configs/overlays/cpu.yaml, line ")},
        ),
        (
            transfer.main,
            ["SEED", "3"],
            "configs/transfer/voc07.yaml",
            {"SEED": (3, "command line"), "MODEL.DEVICE": ("cpu", "configs/overlays/cpu.yaml, line ")},
        ),
        (
            evaluate.main,
            ["KNN.K", "3"],
            "configs/evaluation/knn_imagenet_k200_t0.2.yaml",
            {"KNN.K": (3, "command line"), "SEED": (0, "default")},
        ),
    ],
    ids=["pretrain", "transfer", "evaluate"],
)
def test_a_printed_config_names_each_value_s_origin_and_reads_back_as_the_same(
    root: Path,
    tmp_path: Path,
    main: Callable[..., int],
    words: list[str],
    config: str,
    expected: dict[str, tuple[object, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    kind = ["knn"] if main is evaluate.main else []
    common = [*kind, "--print-config", "--overlay", "configs/overlays/cpu.yaml"]
    assert call_main(main, [*common, "--config-file", config, *words]) == 0
    text = capsys.readouterr().out
    for key, (value, origin) in expected.items():
        content = yaml.safe_load(text)
        for name in key.split("."):
            content = content[name]
        leaf = key.rpartition(".")[2]
        assert content == value
        assert re.search(rf"^ *{leaf}: .*  # {re.escape(origin)}", text, re.MULTILINE)
    (tmp_path / "printed.yaml").write_text(text)
    assert call_main(main, [*kind, "--print-config", "--config-file", str(tmp_path / "printed.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


def test_a_printed_experiment_reads_back_and_hides_the_environment(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    file, key = "configs/experiments/demo.yaml", "rows.simsiam.pretrain.overrides.MONITOR.KNN.PERIOD"
    words = ["plan", file, "--print-config", "--set", f"{key}=1", "--set", "environment.TOKEN=secret"]
    assert call_main(launch.main, words) == 0
    text = capsys.readouterr().out
    assert "MONITOR.KNN.PERIOD: 1  # --set" in text and f"name: demo  # {file}, line " in text and "secret" not in text
    (tmp_path / "printed.yaml").write_text(text)
    assert call_main(launch.main, ["plan", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


def test_an_experiment_is_printed_by_its_name_from_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_main(launch.main, ["plan", "demo", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "demo"
