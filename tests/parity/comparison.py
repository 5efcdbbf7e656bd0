"""A comparison with an original: what it needs and what it finds. Importing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One thing that must be equal.

    Attributes:
        what: its name.
        ok: whether it is.
        found: the measure as text.
        difference: the measure; inf where what is compared has no numbers in common.
    """

    what: str
    ok: bool
    found: str
    difference: float

    def __str__(self) -> str:
        return f"{'equal  ' if self.ok else 'DIFFERS'}  {self.what}: {self.found}"


@dataclass(frozen=True)
class Outcome:
    """What a comparison finds.

    Attributes:
        checks: ours beside the original.
        spoilt: ours with one change beside the original.
        change: that change, in a few words.
    """

    checks: list[Check]
    spoilt: list[Check]
    change: str


@dataclass(frozen=True)
class Original:
    """A commit of a repository; its clone is the folder of the repository's name.

    Attributes:
        repository: owner and name.
        commit: in full.
        part: the folder that is run, where the rest is large; empty: all of it.
    """

    repository: str
    commit: str
    part: str = ""

    @property
    def folder(self) -> str:
        return self.repository.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.folder}@{self.commit[:7]}"


@dataclass(frozen=True)
class Sources:
    """What a comparison runs with.

    Attributes:
        files: the files of each original at its commit, in the order of the comparison's `originals`.
        scratch: a folder of its own.
    """

    files: tuple[Path, ...]
    scratch: Path


@dataclass(frozen=True)
class Comparison:
    """A row of the table.

    Attributes:
        name: what is compared.
        function: `module:function`, called with `Sources` in a process of its own; returns an `Outcome`.
        originals: the commits it runs.
        packages: the installed packages it runs instead.
    """

    name: str
    function: str
    originals: tuple[Original, ...] = ()
    packages: tuple[str, ...] = ()
