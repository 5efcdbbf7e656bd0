"""The folders of a set in PASCAL VOC's layout, and the lists of its images."""

from __future__ import annotations

import codecs
import contextlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from encodings.aliases import aliases
from functools import cached_property
from pathlib import Path, PurePosixPath

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_input
from transfer.tasks.datasets import Split
from transfer.tasks.reading import IMAGE_ENDINGS, ImageFolder, Reading

IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")
"""Names, in any case, of the folders of images and of XML files where VOC's own are missing."""
FLAG = re.compile(r"\s+(-1|0|1)$")
"""The last column of VOC's lists of a single class."""
LIST_LIMIT = 1 << 28
"""Bytes of a list at most."""
PLAIN = re.compile(r"[\w-]+", re.ASCII)
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class VOCFolders:
    """Where a set's images and annotations are.

    Attributes:
        images, annotations: the folders; they may be the same.
    """

    images: Path
    annotations: Path

    @cached_property
    def files(self) -> ImageFolder:
        """The images, found by their names."""
        return ImageFolder(self.images)

    @classmethod
    def below(cls, folder: Path, reading: Reading) -> VOCFolders:
        """Find them: VOC's `JPEGImages` and `Annotations`, else folders of usual names, else `folder` itself."""
        images = _folder(folder, "JPEGImages", IMAGE_FOLDERS, IMAGE_ENDINGS)
        annotations = _folder(folder, "Annotations", ANNOTATION_FOLDERS, {".xml"})
        for found, name in ((images, "JPEGImages"), (annotations, "Annotations")):
            if found.name != name:
                wrong = f"cannot list {folder / name}: it does not exist; point TRANSFER.DATA_ROOT at its folder"
                reading.adjust(f"read from another folder than {name}", wrong)
        return cls(images, annotations)

    def annotation(self, image_id: str) -> Path:
        """The XML file of an image."""
        return self.annotations / f"{image_id}.xml"

    def has(self, image_id: str) -> bool:
        """Whether there is such an XML file."""
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            return not image_id.startswith("/") and self.annotation(image_id).is_file()
        return False


def _folder(folder: Path, name: str, others: tuple[str, ...], endings: frozenset[str] | set[str]) -> Path:
    if (folder / name).is_dir():
        return folder / name
    entries = {entry.name.lower(): entry for entry in sorted(folder.iterdir())} if folder.is_dir() else {}
    for other in others:
        if other in entries and entries[other].is_dir():
            return entries[other]
    return folder if any(entry.suffix.lower() in endings for entry in entries.values()) else folder / name


def list_file(split: Split) -> Path:
    """The file that lists a split's images: VOC's, or of a flat set in its folder."""
    name = f"{split.image_set}.txt"
    usual, flat = split.folder / "ImageSets" / "Main" / name, split.folder / name
    return flat if not split.strict and not usual.exists() and flat.is_file() else usual


def image_list(split: Split, folders: VOCFolders | None = None, reading: Reading | None = None) -> list[str]:
    """List the ids of a split's images: paths of their XML files, without `.xml`.

    A line may also name an image (`IMG_1.jpg`), and have a flag of VOC's lists of a class as its last column.

    Raises:
        UserError: the list is missing, empty, names an image twice or has an encoding in which it names no files.
    """
    file, reading = list_file(split), reading or Reading(split.strict)
    folders = folders or VOCFolders.below(split.folder, Reading())
    try:
        data = read_input(file, LIST_LIMIT)
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist; it should list the images of {split.name}; "
            f"python tools/data.py split {split.folder} writes lists"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    lines, ids = _decoded(data, file, folders, reading)
    for line, image_id in zip(lines, ids, strict=True):
        if image_id not in (line, FLAG.sub("", line)):
            wrong = f"{file}: {line!r} is not the id of an image; write {image_id!r}"
            reading.adjust("{count} lines of the image list that are no ids, but name a file", wrong)
    if not ids:
        raise UserError(f"{file} lists no image")
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise UserError(f"{file} lists {image_id} twice; remove one of the lines")
        seen.add(image_id)
    return ids


def _decoded(data: bytes, file: Path, folders: VOCFolders, reading: Reading) -> tuple[list[str], list[str]]:
    """Lines and ids of a list in UTF-8; else in the encoding in which each of them names an annotation."""
    mark = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "")
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode(mark or "utf-8")
        if mark or "\0" not in text:
            return _lines_and_ids(text, folders)
    wrong = f"{file} is not in UTF-8; save it as UTF-8"
    for encoding in ("utf-16-le", "utf-16-be", *sorted(set(aliases.values()))):
        with contextlib.suppress(LookupError, ValueError):
            lines, ids = _lines_and_ids(data.decode(encoding), folders)
            if ids and all(folders.has(image_id) for image_id in ids):
                reading.adjust(f"image list read as {encoding}", wrong)
                return lines, ids
    raise UserError(f"{wrong} (in no encoding do all its lines name annotations)")


def _lines_and_ids(text: str, folders: VOCFolders) -> tuple[list[str], list[str]]:
    lines = [line for part in re.split(r"[\r\n]+", text) if (line := part.strip())]
    flagged = all(FLAG.search(line) for line in lines)
    return lines, [_id_of(line, flagged, folders) for line in lines]


def _id_of(line: str, flagged: bool, folders: VOCFolders) -> str:
    """A line's id; the end of a line is a flag if no annotation has it in its name.

    Args:
        line: of the list, stripped.
        flagged: all lines of the list end as with a flag.
        folders: where the annotations are.
    """
    if PLAIN.fullmatch(line):
        return line
    bare = FLAG.sub("", line)
    for written in dict.fromkeys((line, bare)):
        for name in _spellings(written, folders):
            if folders.has(name):
                return name
    return list(_spellings(bare if flagged else line, folders))[-1]


def _spellings(written: str, folders: VOCFolders) -> Iterator[str]:
    """The ids that a line may mean: as it is; with `/`; without its ending; below the folders of the set."""
    plain = written.replace("\\", "/")
    below = (_below(plain, folder) for folder in (folders.images, folders.annotations))
    for name in dict.fromkeys(name.removeprefix("./") for name in (written, plain, *below)):
        suffix = PurePosixPath(name).suffix
        stem = name.removesuffix(suffix) if suffix.lower() in {*IMAGE_ENDINGS, ".xml"} else name
        for one in (name, stem):  # macOS writes an accent as a letter of its own
            yield from (one, unicodedata.normalize("NFD", one), unicodedata.normalize("NFC", one))


def _below(name: str, folder: Path) -> str:
    """A path relative to a folder of the set, where the folder's name is in it."""
    return f"/{name}".rpartition(f"/{folder.name}/")[2].removeprefix("/")
