"""Paths and hosts on a page that is forwarded: relative to the run or the checkout, else the last name alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ssl_transfer.environment import ROOT
from transfer.report.model import Report

ABSOLUTE = re.compile(r"""(?<![\w.:/~…\\-])/(?:[^\s/:;,'"<>|()=]+/)+[^\s/:;,'"<>|()=]*""")


class PathShortener:
    """Shortens every text of a page; called with each value that the template prints.

    Args:
        report: its run folders become relative, and the hosts of its results become `host`.
    """

    def __init__(self, report: Report) -> None:
        bases = {str(folder.resolve()): "" for folder in (ROOT, Path.cwd())}
        for run in report.runs:
            if not any(run.resolve().is_relative_to(base) for base in bases):
                bases[str(run.resolve())] = bases[str(run.absolute())] = run.resolve().name
        self.bases = {base: name for base, name in bases.items() if base != "/"}
        known = "|".join(re.escape(base) for base in sorted(self.bases, key=len, reverse=True))
        self._base = re.compile(rf"(?<![\w.…/-])({known})(/|(?![\w.-]))") if known else None
        environments = [trial.environment for trial in report.trials]
        environments += [run.result.environment for run in report.pretraining if run.result]
        hosts = {str(one["host"]) for one in environments if one.get("host")}
        # A name that is a plain word, such as `scratch`, could be a row's.
        marked = "|".join(re.escape(host) for host in hosts if re.search(r"[\d.-]", host))
        self._host = re.compile(rf"\b(?:{marked})\b") if marked else None

    def __call__(self, value: Any) -> Any:
        """The value, shortened if it is a path, or text that is not markup."""
        if isinstance(value, Path):
            value = str(value)
        if type(value) is not str:
            return value
        if self._host:
            value = self._host.sub("host", value)
        if "/" not in value:
            return value
        if self._base:
            value = self._base.sub(lambda found: self._named(found[1], found[2]), value)
        if value.startswith("/") and "\n" not in value and ": " not in value:
            return _last(value)
        return ABSOLUTE.sub(lambda found: _last(found[0]), value)

    def _named(self, base: str, slash: str) -> str:
        name = self.bases[base]
        return f"{name}{slash}" if name else "" if slash else "."


def _last(path: str) -> str:
    return f"…/{path.rstrip('/').rpartition('/')[2]}"
