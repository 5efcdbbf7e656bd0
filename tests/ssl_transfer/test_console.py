"""Exit codes, one-line errors and progress."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssl_transfer import console
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK, Preempted, UserError


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def main(argv: Sequence[str] | None) -> int:
        raise error

    return main


@pytest.mark.parametrize("code", [EXIT_OK, EXIT_FAILURE])
def test_the_code_of_main_is_the_exit_code(code: int) -> None:
    assert console.call_main(lambda argv: code) == code


def test_a_user_error_is_one_line_on_stderr_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.call_main(raising(UserError("bad key\n in file.yaml"))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: bad key in file.yaml\n")


def test_stopped_on_purpose_is_75(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.call_main(raising(Preempted("at iteration 20"))) == 75
    assert "at iteration 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        (["a b", "X", "1"], {}, "python tools/x.py 'a b' X 1 --resume"),
        (["--resume", "X", "1"], {}, "python tools/x.py --resume X 1"),
        (["X"], {"RANK": "0"}, "stopped: at 20; the same command with --resume continues it"),
    ],
)
def test_a_stopped_run_names_the_command_that_continues(
    words: list[str],
    variables: dict[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tools/x.py", *words])
    assert console.call_main(raising(Preempted("at 20"))) == 75
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_ctrl_c_is_130() -> None:
    assert console.call_main(raising(KeyboardInterrupt())) == 130


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        console.call_main(raising(ZeroDivisionError()))


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), ("words", 1)])
def test_system_exit_means_what_it_means_to_python(
    code: object, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.call_main(raising(SystemExit(code))) == expected
    assert ("words" in capsys.readouterr().err) == (code == "words")


def test_run_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        console.run_main(raising(UserError("x")))
    assert leave.value.code == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_is_no_error(root: Path, unbuffered: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from ssl_transfer.console import run_main\n"
        "def main(argv):\n    sys.stdin.readline(); print('x' * 100); return 0\n"
        "run_main(main)"
    )
    command = [sys.executable, "-c", code, str(root)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, **pipes) as child:
        assert child.stdin and child.stdout and child.stderr
        child.stdout.close()
        child.stdin.write(b"\n")
        child.stdin.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0


@pytest.mark.parametrize("argv", [["--no-such"], [], ["a", "b"]])
def test_wrong_use_is_one_line_that_names_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = console.Parser(prog="tool.py")
    parser.add_argument("name")
    with pytest.raises(SystemExit) as leave:
        parser.parse_args(argv)
    err = capsys.readouterr().err
    assert leave.value.code == 2
    assert err.count("\n") == 1 and "tool.py --help" in err


def test_help_keeps_the_examples_line_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    parser = console.Parser(prog="tool.py", epilog="examples:\n  tool.py a\n  tool.py b\n")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "examples:\n  tool.py a\n  tool.py b\n" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = console.Progress(4, "evaluating", "images", stream, every=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: progress.start + 2.0)
    for note in ("", "loss 1.5"):
        progress.step(2, note)
    first, second = stream.getvalue().splitlines()
    assert first == "evaluating 2 of 4 images · 1.0/s · ETA 0:02"
    assert second.startswith("evaluating 4 of 4 images · ") and second.endswith("ETA 0:00 · loss 1.5")


def test_a_log_has_the_first_and_the_last_step_and_few_between() -> None:
    stream = io.StringIO()
    progress = console.Progress(100, "x", stream=stream, every=3600.0)
    for _ in range(100):
        progress.step()
    assert [line.partition(" · ")[0] for line in stream.getvalue().splitlines()] == ["x 1 of 100", "x 100 of 100"]


@pytest.mark.parametrize(("name", "value", "colours"), [("TERM", "xterm-256color", True), ("NO_COLOR", "1", False)])
def test_a_terminal_has_one_line_with_a_bar(
    name: str, value: str, colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    progress = console.Progress(2, "evaluating", "images", stream)
    for _ in range(2):
        progress.last = -1e9
        progress.step(note="a note that is longer than the line, and cut off")
    text = stream.getvalue()
    assert text.count(console.CLEAR) == 2 and text.count("\n") == 1 and "evaluating 2 of 2 images" in text
    assert ("\x1b[38;5" in text or "\x1b[3" in text) == colours
    plain = re.sub(r"\x1b\[[0-9;]*[mK]", "", text).replace("\r", "\n").split("\n")
    assert max(map(len, plain)) <= 58, "a terminal echoes ^C behind it"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    console.Progress(1, "x", stream=stream).step()
    assert stream.getvalue().startswith("x 1 of 1") and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_no_progress(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.QUIET, "1")
    stream = Terminal() if terminal else io.StringIO()
    console.Progress(1, "x", stream=stream).step()
    stages = console.Stages(stream)
    stages("reading")
    stages()
    assert stream.getvalue() == ""


def test_stages_are_lines_with_their_seconds() -> None:
    stream = io.StringIO()
    stages = console.Stages(stream)
    for name in ("reading", "verifying", ""):
        stages(name)
    assert re.fullmatch(r"reading \d+\.\d s\nverifying \d+\.\d s\n", stream.getvalue())


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text


def test_a_name_that_the_terminal_cannot_show_is_escaped(root: Path) -> None:
    """A folder that was unpacked in another encoding has names that are no text; Python prints none by default."""
    code = (
        "from ssl_transfer.console import run_main\n"
        "from ssl_transfer.errors import UserError\n"
        "def main(argv):\n    print('\\udcb4.jpg × 2')\n    raise UserError('\\udcb4.jpg is empty')\n"
        "run_main(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr == "error: \\udcb4.jpg is empty\n"
    assert done.stdout == "\\udcb4.jpg \\xd7 2\n"


def test_without_detectron2_the_command_that_installs_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")

    assert console.call_main(main) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "doctor.py --fix" in err


def test_commands_in_messages_are_what_the_user_types(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "first python tools/convert.py a OUT.pkl, then python tools/lr_search.py choose"
    monkeypatch.setattr("sys.argv", ["tools/transfer.py"])
    assert console.as_typed(text) == text
    monkeypatch.setattr("sys.argv", ["python -m ssl_transfer transfer"])
    assert console.as_typed(text).startswith("first python -m ssl_transfer convert a")
    monkeypatch.setattr("sys.argv", ["site-packages/ssl_transfer/tools/transfer.py"])
    monkeypatch.setattr(console, "IS_WHEEL", True)
    assert console.as_typed(text) == "first ssl-transfer convert a OUT.pkl, then ssl-transfer lr-search choose"
