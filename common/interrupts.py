"""Ctrl-C while a command line's modules are imported."""

from __future__ import annotations

import os
import signal

from common.errors import EXIT_INTERRUPTED


def exit_silently() -> None:
    """Until `common.console.call_main` runs, Ctrl-C ends the process without a traceback.

    A process that ignores Ctrl-C (a job of `launch.py`) still does.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def restore_default() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(_number: int, _frame: object) -> None:
    os._exit(EXIT_INTERRUPTED)
