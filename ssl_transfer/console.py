"""Command lines: argument parser, exit codes, one-line errors, progress."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import math
import os
import re
import shlex
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NoReturn, TextIO

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


QUIET = "SSL_TRANSFER_QUIET"
"""The environment variable that `--quiet` sets, so that spawned processes have it, too."""
PRINT_CONFIG = "--print-config"


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
        self._words: list[str] = []
        if not is_verb:
            self.add_argument("--version", action=PrintAndExit, text=describe_versions, help="print versions and exit")

    def add_configs(self, *folders: str, help: str, required: bool = False, overlay: str = "") -> None:
        """Add `--config-file`, which takes a path or a name of configs/FOLDER, and `--list-configs`.

        Args:
            folders: the folders below configs/; see `find_config`.
            help, required: of `--config-file`.
            overlay: help of `--overlay`, which is added too.
        """
        from ssl_transfer.config_files import find_config

        self.add_argument(
            "--config-file", required=required, metavar="F", type=lambda name: find_config(name, *folders), help=help
        )
        if overlay:
            self.add_argument("--overlay", metavar="F", type=lambda name: find_config(name, "overlays"), help=overlay)
        self.add_list_configs(*folders, *(["overlays"] if overlay else []))

    def add_list_configs(self, *folders: str) -> None:
        """Add `--list-configs`: what can be named of these folders of configs/."""
        from ssl_transfer.config_files import list_configs

        help_ = "list the configs that can be named without a path, and exit"
        self.add_argument("--list-configs", action=PrintAndExit, text=lambda: list_configs(*folders), help=help_)

    def add_quiet(self) -> None:
        """Add `-q`."""
        self.add_argument(
            "-q",
            "--quiet",
            action=_Quiet,
            nargs=0,
            default=argparse.SUPPRESS,
            help="only warnings, errors and the result",
        )

    def add_print_config(self) -> None:
        """Add `--print-config`, with which no option but `--config-file` is required."""
        text = "print the resolved config as YAML, each value with the file or argument that it came from; run nothing"
        self.add_argument(PRINT_CONFIG, action="store_true", help=text)

    def complete(self) -> None:
        """Answer a shell that asks for completions, and exit; otherwise do nothing."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's, with completion."""
        self.complete()
        return super().parse_args(*args, **kwargs)

    def parse_intermixed_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's, with completion."""
        self.complete()
        return super().parse_intermixed_args(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, with the words at hand for messages."""
        self._words = list(sys.argv[1:] if args is None else args)
        if PRINT_CONFIG in self._words and PRINT_CONFIG in self._option_string_actions:
            for action in self._actions:
                action.required = action.required and not (set(action.option_strings) - {"--config-file"})
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line, with the nearest valid names, and exit with `EXIT_USAGE`."""
        line = errors.printable(f"{self.prog}: error: {message}{self._suggestion(message)}; see {self.prog} --help")
        self.exit(EXIT_USAGE, f"{errors.redact_urls(line)}\n")

    def _suggestion(self, message: str) -> str:
        """The valid options, verbs or choices that are similar to the one that `message` refuses."""
        word, valid = "", list(self._option_strings())
        if found := re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message):
            word = found[1]
        elif found := re.search(r"are required: (.*)", message):
            valid = [name for name in found[1].split(", ") if name.startswith("--")]
            given = [one.partition("=")[0] for one in self._words if one.startswith("--")]
            unknown = [one for one in given if one not in self._option_string_actions]
            word = next((one for one in unknown if errors.nearest(one, valid).startswith("did you mean")), "")
        elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, valid = found[1], [name.strip("' ") for name in found[2].split(",")]
        similar = errors.nearest(word, valid)
        return f"; {similar}" if word and similar.startswith("did you mean") else ""

    def _option_strings(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings
            for verb in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
                yield from verb._option_string_actions


class _Quiet(argparse.Action):
    def __call__(self, *_: object) -> None:
        os.environ[QUIET] = "1"


def is_quiet() -> bool:
    """Whether only warnings, errors and the result are to be printed."""
    return bool(os.environ.get(QUIET))


def is_live(stream: IO[str]) -> bool:
    """Whether a stream is a terminal whose current line can be drawn again."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def verb_examples(epilog: str, verb: str) -> str:
    """The examples of one verb: each a command, with its continued lines and the `# …` lines above it."""
    listed = epilog.partition("\n\n")[0].split("\n", 1)[1]
    commands = re.findall(r"(?:^  #.*\n)*^  (?!#)(?:.*\\\n)*.*$", listed, re.MULTILINE)
    own = [text for text in commands if verb in re.sub(r"^  #.*\n", "", text, flags=re.MULTILINE).split()[:4]]
    return "\n".join(["examples:", *own, ""])


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
        print(f"{CLEAR if is_live(sys.stderr) else ''}stopped: {stop}; {_continuation(argv)}", file=sys.stderr)
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


def _continuation(argv: Sequence[str] | None) -> str:
    """How to continue a run that stopped: the command, where the user typed it in a shell."""
    if argv is not None or not {"RANK", "SLURM_STEP_ID"}.isdisjoint(os.environ):  # torchrun or srun was typed
        return "the same command with --resume continues it"
    words = [*sys.argv[1:], *(() if "--resume" in sys.argv else ("--resume",))]
    return f"continue with:\n{program()} {shlex.join(words)}"


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


CLEAR = "\r\033[2K"
"""To the beginning of a terminal's line, which is cleared."""


class StatusLine:
    """The last line of a terminal, drawn again and again; other lines are printed after `CLEAR`.

    Nothing has to be restored when the process is killed.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self.stream, self.console = stream, Console(file=stream, highlight=False)

    def show(self, done: int, total: int, text: str, end: str = "") -> None:
        """Draw a bar and a text that is cut off where the line ends."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_column(width=20)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(ProgressBar(max(total, 1), done, width=20), Text(errors.printable(text)))
        with self.console.capture() as drawn:
            self.console.print(row, width=self.console.width - 2)  # room for the ^C that a terminal echoes
        self.stream.write(CLEAR + drawn.get().rstrip() + end)
        self.stream.flush()


class Progress:
    """Progress of long work: a bar on a terminal; elsewhere a plain line after the first step, then every few seconds.

    Args:
        total: number of steps.
        label: describes the work, such as `evaluating`.
        unit: what is counted.
        stream: output stream; stderr by default.
        every: seconds between plain lines.
    """

    def __init__(
        self, total: int, label: str, unit: str = "", stream: TextIO | None = None, *, every: float = 30.0
    ) -> None:
        self.total, self.label, self.unit = total, label, f" {unit}" if unit else ""
        self.stream = stream or sys.stderr
        self.line = StatusLine(self.stream) if is_live(self.stream) and not is_quiet() else None
        self.every = 0.2 if self.line else every
        self.start = time.monotonic()
        self.last = -math.inf
        self.done = 0

    def __str__(self) -> str:
        return f"{self.label} {self.done:,} of {self.total:,}{self.unit}"

    def step(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished steps and print where it is time to."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            self._write(now, note)

    def _write(self, now: float, note: str) -> None:
        text, spent = str(self), now - self.start
        if self.done and spent > 0.1:  # too short a time tells no rate
            eta = (self.total - self.done) * spent / self.done
            text += f" · {self.done / spent:.1f}/s · ETA {clock(eta)}"
        text += f" · {note}" if note else ""
        if self.line:
            self.line.show(self.done, self.total, text, "\n" if self.done >= self.total else "")
        elif not is_quiet():
            self.stream.write(f"{text}\n")
            self.stream.flush()


class Stages:
    """The stages of a work that cannot be counted, each with its seconds: `reading 3.2 s`.

    Args:
        stream: output stream; stderr by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.name, self.start = "", time.monotonic()

    def __call__(self, name: str = "") -> None:
        """Begin a stage, and end the one before; without a name only end it."""
        now = time.monotonic()
        if self.name and not is_quiet():
            clear = CLEAR if is_live(self.stream) else ""
            self.stream.write(f"{clear}{self.name} {now - self.start:.1f} s\n")
        self.name, self.start = name, now
        if name and is_live(self.stream) and not is_quiet():
            self.stream.write(f"{name} …")
        self.stream.flush()


def megabytes(label: str) -> Callable[[int, int | None], None]:
    """Progress of a download in megabytes, over any number of connections.

    Returns:
        A function of the received bytes and the total (None where it is unknown).
    """
    shown: list[Progress] = []

    def report(done: int, total: int | None) -> None:
        if not shown:
            shown.append(Progress((total or done) // 1_000_000, f"downloading {label}", "MB"))
        shown[0].step(done // 1_000_000 - shown[0].done)

    return report


def clock(seconds: float) -> str:
    """Format `seconds` as 1:02:03 or 2:03."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
