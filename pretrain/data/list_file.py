"""A list file: one image's path a line, and its class where there are classes."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from pretrain.data.names import Names
from pretrain.data.scan import EXTENSIONS


def read_list(file: Path, root: str = "") -> tuple[Path, Names, tuple[str, ...]]:
    """Read a list file.

    A line is `PATH`, `PATH<tab>CLASS` or `PATH CLASS`; a path may hold spaces. Empty lines and lines that begin with
    `#` are passed over. The images keep the file's order. That they exist is asked of the first alone: looking up a
    million of them takes minutes; one that is missing is named when it is opened.

    Args:
        file: the list, in UTF-8.
        root: what the paths are relative to; empty for the folder that `file` lies in. Absolute paths stay as they are.

    Returns:
        The arguments of an ImageIndex: the folder that the paths are relative to, the paths, and each one's class.

    Raises:
        UserError: it cannot be read, holds no path, a line's path has no image's ending, only some lines have a class,
            or the first image does not exist; names file and line.
    """
    folder = Path(root).expanduser() if root else file.parent
    if not folder.is_dir():
        raise UserError(f"DATA.LIST_ROOT {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read DATA.ROOT {file}: {error.strerror}") from error
    names: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, label = _parsed(text, f"{file}, line {number}")
        if names and bool(label) != bool(classes):
            raise UserError(f"{file}, line {number}: {_unlike(label)}; give every image a class, or none")
        if not names and not (folder / name).is_file():
            raise UserError(
                f"{file}, line {number}: {folder / name} does not exist; "
                f"paths are relative to {folder} (DATA.LIST_ROOT sets another folder)"
            )
        names.append(name)
        classes += [label] if label else []
    if not names:
        raise UserError(f"DATA.ROOT {file} lists no images; it needs one path a line")
    return folder, Names.of(names), tuple(classes)


def _parsed(text: str, where: str) -> tuple[str, str]:
    """A line's path and class, the class empty where there is none."""
    name, _, label = (part.strip() for part in text.partition("\t"))
    if not label and not name.lower().endswith(EXTENSIONS):
        name, label = [*text.rsplit(maxsplit=1), ""][:2]
    if not name.lower().endswith(EXTENSIONS):
        raise UserError(f"{where}: {name!r} has no image's ending ({', '.join(EXTENSIONS)})")
    return name, label


def _unlike(label: str) -> str:
    return "a class, where the images before have none" if label else "no class, where the images before have one"
