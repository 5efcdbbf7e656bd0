"""Exit codes, and the exceptions that end a command in one line without a traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterable, Sequence

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
"""Wrong use or bad input (`UserError`)."""
EXIT_REQUEUE = 75
"""Stopped on purpose after a checkpoint (`Preempted`; sysexits' EX_TEMPFAIL): the same command continues."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT."""


class UserError(Exception):
    """Wrong use or bad input.

    The message is one line that says what is wrong, where (file, key, line) and what to do.
    `ssl_transfer.console.run_main` prints it and exits with `EXIT_USAGE`. Other exceptions are bugs and keep their
    traceback.
    """


class StorageError(UserError):
    """A disk is full, failing or read-only: one line, exit `EXIT_FAILURE`; the same command continues afterwards."""


_FREE, _FAILS = "free some space and run the same command again", "check the disk and run the same command again"
STORAGE_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "allow larger files (ulimit -f, the file system's limit) and run the same command again",
    errno.EROFS: "choose another folder, or make the file system writable and run the same command again",
    errno.EIO: _FAILS,
    errno.ESTALE: _FAILS,
    errno.EREMOTEIO: _FAILS,
    errno.ENXIO: _FAILS,
}
"""What to do about an error of the storage, by its number. Other errors of the system are no storage's."""


def storage_error(error: BaseException | None, path: str | os.PathLike[str] | None = None) -> StorageError | None:
    """The one-line error where `error`, or what it was raised from, is a full, failing or read-only disk; else None.

    torch's zip writer hides the system's error in a RuntimeError.

    Args:
        error: any exception.
        path: the file that was written, where the exception names none.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageError):
            return seen
        if isinstance(seen, OSError) and seen.errno in STORAGE_REMEDIES:
            name = path or seen.filename or "the output"
            return StorageError(f"cannot write {name}: {seen.strerror}; {STORAGE_REMEDIES[seen.errno]}")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):
        return StorageError(f"cannot write {path or 'a checkpoint'}: the disk is full or failing; {_FREE}")
    return None


class Preempted(Exception):
    """The run stopped on a signal after saving a checkpoint; the same command continues it (`EXIT_REQUEUE`)."""


def exit_on_interrupt() -> None:
    """Until `ssl_transfer.console.run_main`, Ctrl-C ends the process without a traceback, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))


def nearest(word: str, valid: Iterable[str], count: int = 3) -> str:
    """List the valid names most similar to `word`, or some of them where none is similar.

    Args:
        word: the name that the user gave.
        valid: all valid names.
        count: maximum number of names.

    Returns:
        ``"did you mean A, B?"`` or ``"valid: A, B, C, …"``.
    """
    import difflib

    names = sorted(set(valid))
    lower = {name.lower(): name for name in names}
    close = [lower[m] for m in difflib.get_close_matches(word.lower(), list(lower), n=count, cutoff=0.6)]
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return "none is valid here"
    more = ", …" if len(names) > 12 else ""
    return f"valid: {', '.join(names[:12])}{more}"


def abbreviate(names: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """The first `count` names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return separator.join(names[:count]) + more


CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def redact_urls(text: str) -> str:
    """`https://user:password@host` as `https://***@host`."""
    return re.sub(r"(?<=://)[^/\s@'\"]*@", "***@", text)


def printable(text: str) -> str:
    """A text that a terminal shows as it is: control characters (but tabs and line breaks) and halves of surrogate
    pairs are escaped, as `\\x1b`."""
    escaped = CONTROL_CHARACTERS.sub(lambda c: c[0] if c[0] in "\t\n" else f"\\x{ord(c[0]):02x}", text)
    return escaped.encode("utf-8", "backslashreplace").decode()
