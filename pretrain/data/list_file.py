"""Read a list file: one image path per line, optionally with its class."""

from __future__ import annotations

from pathlib import Path

from pretrain.data.index_cache import EXTENSIONS, PackedStringArray
from ssl_transfer.errors import UserError
from ssl_transfer.files import read_input

LIST_LIMIT = 4 << 30
"""Bytes of a list at most."""


def read_list(file: Path, root: str = "") -> tuple[Path, PackedStringArray, tuple[str, ...]]:
    """Read a list file.

    A line is `PATH`, `PATH<tab>CLASS` or `PATH CLASS`; a path may contain spaces. Empty lines and lines that start with
    `#` are skipped. The images are in the file's order. Only the first one is checked for existence, because checking a
    million takes minutes; a missing one is named when it is opened.

    Args:
        file: the list, in UTF-8.
        root: the folder that the paths are relative to; empty for the folder of `file`. Absolute paths are kept.

    Returns:
        The arguments of ImageIndex: the folder that the paths are relative to, the paths, and each one's class.

    Raises:
        UserError: the file cannot be read or is empty, a path has no image extension, only some lines have a class,
            or the first image does not exist; the message names file and line.
    """
    folder = Path(root).expanduser() if root else file.parent
    if not folder.is_dir():
        raise UserError(f"DATA.LIST_ROOT {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    try:
        lines = read_input(file, LIST_LIMIT).decode(errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read DATA.ROOT {file}: {error.strerror}") from error
    names: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, label = _parse(text, f"{file}, line {number}")
        if names and bool(label) != bool(classes):
            has = "a class, unlike the lines before" if label else "no class, unlike the lines before"
            raise UserError(f"{file}, line {number}: {has}; give every image a class, or none")
        if not names and not (folder / name).is_file():
            raise UserError(
                f"{file}, line {number}: {folder / name} does not exist; "
                f"paths are relative to {folder} (DATA.LIST_ROOT sets another folder)"
            )
        names.append(name)
        classes += [label] if label else []
    if not names:
        raise UserError(f"DATA.ROOT {file} lists no images; it needs one path per line")
    return folder, PackedStringArray.from_strings(names), tuple(classes)


def _parse(text: str, where: str) -> tuple[str, str]:
    """A line's path and class; the class is empty if there is none."""
    name, _, label = (part.strip() for part in text.partition("\t"))
    if not label and not name.lower().endswith(EXTENSIONS):
        name, label = [*text.rsplit(maxsplit=1), ""][:2]
    if not name.lower().endswith(EXTENSIONS):
        raise UserError(f"{where}: {name!r} has no image extension ({', '.join(EXTENSIONS)})")
    return name, label
