"""Finds config files by path or by name: the user's own, then those of configs/."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError, nearest

CONFIGS = ROOT / "configs"


def find_config(name: str | os.PathLike[str], *folders: str) -> Path:
    """The config file that `name` means.

    In this order: a file of the user with that path, with or without `.yaml`; `configs/…` of this project, from any
    current folder; a file below a `configs/FOLDER` by its name, such as `voc07` or `ablations/…`.

    Args:
        name: what the user gave.
        folders: of `pretrain`, `evaluation`, `transfer`, `overlays` and `experiments`.

    Raises:
        UserError: there is no such file, or several files below these folders have that name.
    """
    path = Path(name)
    for own in (path, Path(f"{path}.yaml")):
        if os.path.lexists(own) and not own.is_dir():
            return own
    if path.parts[:1] == (CONFIGS.name,) and (ROOT / path).is_file():
        return ROOT / path
    known = dict(entry for folder in folders for entry in _shipped(folder))
    where = " and ".join(f"configs/{folder}" for folder in folders)
    word = str(path).removesuffix(".yaml")
    found = [file for key, file in known.items() if key == word] or [f for f in known.values() if f.stem == word]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(key for key, file in known.items() if file in found)
        raise UserError(f"config {name}: several files of {where} have that name: name one of {names}")
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a file; name a file")
    similar = nearest(path.stem, _similar(path, known))
    advice = similar if similar.startswith("did you mean") else f"--list-configs lists those of {where}"
    raise UserError(f"config file {_shown(name)} does not exist; {advice}")


def _shown(name: str | os.PathLike[str]) -> str:
    text = str(name)
    return text if len(text) < 300 else f"{text[:100]}…"


def _similar(path: Path, known: dict[str, Path]) -> list[str]:
    """What the user may have meant: files beside the missing one, then names below configs/."""
    beside = [file.stem for file in path.parent.glob("*.yaml")] if len(path.parts) > 1 else []
    return beside or [*known, *(file.stem for file in known.values()), *(file.stem for file in Path().glob("*.yaml"))]


def _shipped(folder: str) -> Iterator[tuple[str, Path]]:
    """Name and path of each file below `configs/FOLDER`; the name has the folders between them."""
    for file in sorted((CONFIGS / folder).rglob("*.yaml")):
        yield file.relative_to(CONFIGS / folder).with_suffix("").as_posix(), file


def list_configs(*folders: str) -> str:
    """Names of the files below `configs/FOLDER …` that are used by themselves, with what each gives, one a line."""
    lines = []
    for folder in folders:
        told = [(name, _gives(file)) for name, file in _shipped(folder)]
        width = max(len(name) for name, text in told if text) + 2
        lines.append(f"configs/{folder}:")
        for name, text in told:
            if text:
                lines.append(f"  {name:{width}s}{textwrap.shorten(text, 118 - width, placeholder=' …')}")
    return "\n".join(lines)


def _gives(file: Path) -> str:
    """What a config's heading says that it gives; empty for a file that others build on."""
    heading = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))
    text = " ".join(line.lstrip("# ") for line in (heading[0] if heading else "").splitlines())
    return text.removeprefix("Gives: ").partition(" Costs: ")[0] if text.startswith("Gives: ") else ""
