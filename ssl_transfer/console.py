"""Command lines: argument parser, exit codes, one-line errors, progress."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import os
import re
import shlex
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from ssl_transfer import errors
from ssl_transfer.environment import IS_WHEEL, describe_versions
from ssl_transfer.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REQUEUE,
    EXIT_USAGE,
    Preempted,
    UserError,
    storage_error,
)

COMMANDS = ("ssl-transfer", "python -m ssl_transfer")
"""The two spellings of the command; `ssl_transfer.__main__` puts one of them and the verb into `sys.argv[0]`."""
MAX_LINE = 4000
"""Characters of an error at most: a name may have millions."""


def program() -> str:
    """What the user typed before the arguments: `python tools/convert.py`, or `ssl-transfer convert`."""
    return f"python {shlex.quote(sys.argv[0])}" if sys.argv[0].endswith(".py") else sys.argv[0]


def as_typed(text: str) -> str:
    """A text with each `python tools/X.py` as the user would type it: `ssl-transfer X` where that command runs."""
    command = sys.argv[0].rpartition(" ")[0]
    if command not in COMMANDS:  # a script of tools/, or Python code
        if not IS_WHEEL:
            return text
        command = COMMANDS[0]
    return re.sub(r"python tools/(\w+)\.py", lambda tool: f"{command} {tool[1].replace('_', '-')}", text)


class PrintAndExit(argparse.Action):
    """An option that prints a text and exits before other arguments are required.

    Args:
        text: makes the text.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[[], str], help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self.text())
        parser.exit(EXIT_OK)


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the line breaks of its examples and prints errors as one line.

    Its name and its examples are what the user types (`program`, `as_typed`); it has `--version`, but not in the
    parsers of verbs, which argparse names after it.
    """

    def __init__(self, *args: object, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        is_verb = "prog" in kwargs
        texts = {key: as_typed(kwargs[key]) for key in ("description", "epilog") if kwargs.get(key)}
        super().__init__(*args, **{"prog": program(), **kwargs, **texts})  # type: ignore[arg-type]
        if not is_verb:
            self.add_argument("--version", action=PrintAndExit, text=describe_versions, help="print versions and exit")

    def add_configs(self, folder: str, help: str, *, required: bool = False, overlay: str = "") -> None:
        """Add `--config-file`, which takes a path or a name of configs/FOLDER, and `--list-configs`.

        Args:
            folder: the folder below configs/; see `find_config`.
            help, required: of `--config-file`.
            overlay: help of `--overlay`, which is added too.
        """
        from ssl_transfer.config_files import find_config

        find = functools.partial(functools.partial, find_config)
        self.add_argument("--config-file", required=required, metavar="F", type=find(folder=folder), help=help)
        if overlay:
            self.add_argument("--overlay", metavar="F", type=find(folder="overlays"), help=overlay)
        self.add_list_configs(*([folder, "overlays"] if overlay else [folder]))

    def add_list_configs(self, *folders: str) -> None:
        """Add `--list-configs`: what can be named of these folders of configs/."""
        from ssl_transfer.config_files import list_configs

        help_ = "list the configs that can be named without a path, and exit"
        self.add_argument("--list-configs", action=PrintAndExit, text=lambda: list_configs(*folders), help=help_)

    def error(self, message: str) -> NoReturn:
        """Print one line, with the nearest valid names, and exit with `EXIT_USAGE`."""
        line = errors.printable(f"{self.prog}: error: {message}{self._suggestion(message)}; see {self.prog} --help")
        self.exit(EXIT_USAGE, f"{errors.redact_urls(line)}\n")

    def _suggestion(self, message: str) -> str:
        """The valid options, verbs or choices that are similar to the one that `message` refuses."""
        word, valid = "", list(self._option_strings())
        if found := re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message):
            word = found[1]
        elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, valid = found[1], [name.strip("' ") for name in found[2].split(",")]
        similar = errors.nearest(word, valid)
        return f"; {similar}" if word and similar.startswith("did you mean") else ""

    def _option_strings(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings
            for verb in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
                yield from verb._option_string_actions


def run_main(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line's `main` and exit with the code that `call` returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    _write_whole_lines()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(call_main(main, argv))


def call_main(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command line's `main` and return its exit code; a UserError is printed as one line."""
    try:
        return _call(main, argv)
    except BrokenPipeError:
        _discard_output(sys.stdout)  # the reader (head, less) has exited, which is no error
        return EXIT_OK


def _call(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    try:
        code = main(argv)
        _flush_output()  # here, not at exit, so that a closed pipe and a full disk are handled below
        return code
    except UserError as error:
        return print_error(error)
    except Preempted as stop:
        print(f"stopped: {stop}; the same command continues it", file=sys.stderr)
        return EXIT_REQUEUE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as system_exit:
        if _has_cause(system_exit, BrokenPipeError):  # as rich leaves
            return EXIT_OK
        _flush_output()
        if system_exit.code is None or isinstance(system_exit.code, int):
            return system_exit.code or EXIT_OK
        print(system_exit.code, file=sys.stderr)
        return EXIT_FAILURE
    except Exception as error:
        if _has_cause(error, KeyboardInterrupt):  # a module of C that was being imported raises its own error
            return EXIT_INTERRUPTED
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            name = str(error.filename)
            shown = name if len(name) < 300 else f"{name[:100]}… ({len(name)} characters)"
            return print_error(UserError(f"{shown}: {error.strerror}; give another path"))
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "detectron2":
            return print_error(UserError("Detectron2 is not installed; install it: python tools/doctor.py --fix"))
        failure = storage_error(error)
        if failure is None:
            raise
        return print_error(failure)


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _write_whole_lines() -> None:
    """Give an unbuffered stdout (`python -u`) a buffer that is flushed at each line.

    Without one a short write, which is how a disk fills, loses the rest of the text and raises nothing.
    """
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        out: Any = sys.stdout
        stream = io.BufferedWriter(out.buffer)
        sys.stdout = io.TextIOWrapper(stream, out.encoding, out.errors, line_buffering=True, write_through=True)


def _flush_output() -> None:
    """Flush stdout, to the disk where it is a file: some file systems report a full disk no earlier."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    with contextlib.suppress(io.UnsupportedOperation, ValueError):
        number = sys.stdout.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            os.fsync(number)


def _discard_output(stream: TextIO) -> None:
    """Discard what the stream still holds: the interpreter must not fail on it at exit."""
    with contextlib.suppress(io.UnsupportedOperation, ValueError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def ignore_torch_warnings() -> None:
    """Silence torch's deprecation warnings about Detectron2's code, here and in spawned processes."""
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*|.*torch\.meshgrid.*")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")


def print_error(error: UserError) -> int:
    """Print an error as one line on stderr and return `EXIT_USAGE`, or `EXIT_FAILURE` if a disk is the reason."""
    line = " ".join(str(error)[:MAX_LINE].split())
    line = errors.redact_urls(errors.printable(as_typed(f"error: {line}")))
    failed = storage_error(error) is not None
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # it is on a full disk, or its reader has exited
            _discard_output(stream)
    return EXIT_FAILURE if failed else EXIT_USAGE


class Progress:
    """Progress of long work: one updated line on a terminal, a plain line every few seconds elsewhere.

    Args:
        total: number of steps.
        label: describes the work.
        stream: output stream; stderr by default.
        every: seconds between plain lines.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.total, self.label = total, label
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else every
        self.start = self.last = time.monotonic()
        self.done = 0

    def step(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished steps and print where it is time to."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            self._write(now, note)

    def _write(self, now: float, note: str) -> None:
        spent = max(now - self.start, 1e-9)
        rate = self.done / spent
        eta = (self.total - self.done) / rate if rate else 0.0
        line = f"{self.label}: {self.done}/{self.total} · {rate:.1f}/s · ETA {clock(eta)}"
        line += f" · {note}" if note else ""
        end = "\n" if not self.live or self.done >= self.total else ""
        self.stream.write(f"\r\033[K{line}{end}" if self.live else line + "\n")
        self.stream.flush()


def megabytes(label: str) -> Callable[[int, int | None], None]:
    """Progress of a download in megabytes, over any number of connections.

    Returns:
        A function of the received bytes and the total (None where it is unknown).
    """
    shown: list[Progress] = []

    def report(done: int, total: int | None) -> None:
        if not shown:
            shown.append(Progress((total or done) // 1_000_000, f"{label}, MB"))
        shown[0].step(done // 1_000_000 - shown[0].done)

    return report


def clock(seconds: float) -> str:
    """Format `seconds` as 1:02:03 or 2:03."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
