"""What a job runs: a tool of tools/ with its arguments, and how they become a command line where the process starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_transfer import environment
from ssl_transfer.config import parse_value

Command = tuple[str, ...]
TRAINING_TOOLS = ("pretrain", "evaluate", "transfer")
"""The tools that take `--num-gpus`."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of one run of a tool.

    Attributes:
        positional: the arguments without a name, in order.
        config: the `--config-file`.
        overlay: the `--overlay`.
        options: `--NAME` → its value or values; True for an option without a value.
        overrides: dotted config keys, each with its value as text.
        data: the option or config key that names the data root.
    """

    positional: Sequence[str] = ()
    config: Path | None = None
    overlay: Path | None = None
    options: Mapping[str, str | Sequence[str] | bool] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Tools:
    """Makes command lines: of the tools in `folder`, with the files of `code`, a copy of the checkout, if given."""

    folder: Path = field(default_factory=lambda: environment.ROOT / "tools")
    python: str = sys.executable
    code: Path | None = None

    def with_code(self, code: Path | None) -> Tools:
        """The same tools, run from a copy of the checkout."""
        return replace(self, code=code)

    def command(self, tool: str, arguments: Arguments, *, num_gpus: int = 0, data: str | None = None) -> Command:
        """The command line of one run of a tool.

        Args:
            tool, arguments: the tool's name and its arguments.
            num_gpus: start one process per GPU if there are several; for tools that train or evaluate.
            data: a copy of the data root, to be read in its place.
        """
        words = [self.python, self._located(self.folder / f"{tool}.py"), *arguments.positional]
        if num_gpus > 1 and tool in TRAINING_TOOLS:
            words += ["--num-gpus", str(num_gpus)]
        if arguments.config is not None:
            words += ["--config-file", self._located(arguments.config)]
        if arguments.overlay is not None:
            words += ["--overlay", self._located(arguments.overlay)]
        for name, value in arguments.options.items():
            if data is not None and name == arguments.data:
                value = data
            values = [value] if isinstance(value, str) else [] if isinstance(value, bool) else value
            words += [f"--{name}", *values] if value else []
        for key, text in arguments.overrides.items():
            words += [key, data if data is not None and key == arguments.data else text]
        return tuple(words)

    def _located(self, path: Path) -> str:
        """The file's path in the copy of the checkout, if the copy has it."""
        if self.code is not None and path.is_relative_to(environment.ROOT):
            copy = self.code / path.relative_to(environment.ROOT)
            return str(copy if copy.exists() else path)
        return str(path)


def spell_overrides(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Config overrides with each value spelled so that `parse_value` reads it back."""
    return {key: _spell(value) for key, value in overrides.items()}


def _spell(value: Any) -> str:
    if isinstance(value, str) and parse_value(value) == value:
        return value
    return repr(value)
