"""Read a split in PASCAL VOC's layout; errors name file and object."""

from __future__ import annotations

import codecs
import contextlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import read_input
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.reading import Reading, image_size, slack_of
from transfer.tasks.voc_lists import VOCFolders, image_list, list_file

XML_LIMIT = 1 << 24
"""Bytes of an annotation at most."""
SLACK = 1
"""Pixels by which a box may exceed its image: annotations that count from 0 instead of 1 are common and harmless."""
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "cp950"}
"""What files hold that declare these encodings, by Python's names."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0\0\0": "utf-32-le",
    b"\0\0\0<": "utf-32-be",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
"""First bytes of an XML file, and the encoding that they show."""
DECLARATION = re.compile(rb"\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)[\"']")


def read_voc(split: Split, classes: Sequence[str], reading: Reading | None = None) -> list[DatasetDict]:
    """Read every annotation of a split, in the order of its image list.

    Args:
        split: a split of layout `voc`.
        classes: the task's class names; an object of any other name is an error.
        reading: collects faults (images with faults are left out) and adjustments; by default the first
            fault is raised.

    Returns:
        One record per image; boxes as in the XML, those outside their image clipped.

    Raises:
        UserError: a file is missing or broken, or an object has no known class or no valid box.
    """
    reading = reading or Reading(split.strict)
    labels = {name: index for index, name in enumerate(classes)}
    folders = VOCFolders.below(split.folder, reading)
    records: list[DatasetDict] = []
    listed_in = list_file(split)
    seen: dict[str, str] = {}
    for image_id in image_list(split, folders, reading):
        try:
            image = find_image(image_id, split.extension, listed_in, folders, reading)
            if seen.setdefault(image, image_id) != image_id:
                raise UserError(f"{listed_in}: {image} is the image of {seen[image]} and of {image_id}")
            records.append(_record(folders.annotation(image_id), image, image_id, labels, reading))
        except UserError as error:
            reading.add_fault(error)
    return records


def find_image(image_id: str, extension: str, listed_in: Path, folders: VOCFolders, reading: Reading) -> str:
    """An image's path: by the stem, or by the XML's filename, unless that is the stem of another annotation.

    Args:
        image_id: path of the XML file without its ending, in the folder of the annotations.
        extension: the ending that is tried first.
        listed_in: the file that has the id, for messages.
        folders: of the set.
        reading: counts the images whose names differ.

    Raises:
        UserError: there is no such image, or several.
    """
    try:
        found = folders.files.find(f"{image_id}.{extension}", listed_in, reading)
        if not reading.strict and folders.files.has_others(found):
            reading.adjust("{count} images that exist with several endings: EXTENSION chooses", "")
        return found
    except UserError:
        annotation = folders.annotation(image_id)
        if reading.strict or not folders.has(image_id):
            raise
        written = re.split(r"[\\/]", parse_xml(annotation, Reading()).findtext("filename") or "")[-1].strip()
        with contextlib.suppress(UserError, ValueError):
            name = (Path(image_id).parent / written).as_posix()
            found = folders.files.find(name, annotation, Reading()) if written else ""
            other = Path(found).relative_to(folders.images).with_suffix("").as_posix() if found else image_id
            if found and (other == image_id or not folders.has(other)):
                reading.adjust("{count} images found by the filename in their XML", "")
                return found
        raise


def _record(annotation: Path, image: str, image_id: str, labels: dict[str, int], reading: Reading) -> DatasetDict:
    tree = parse_xml(annotation, reading)
    width, height = _size(tree, annotation, image, reading)
    annotations = []
    for index, element in enumerate(tree.findall("object"), start=1):
        where = f"{annotation}, object {index}"
        label = _label(element, where, labels)
        box = _box(element, where, width, height, reading)
        annotations.append(Annotation(label, box, _is_difficult(element, where, reading)))
    return DatasetDict(image, image_id, int(width), int(height), tuple(annotations))


def _size(tree: ET.Element, annotation: Path, image: str, reading: Reading) -> tuple[float, float]:
    """Width and height from the XML; the image's own where it has none, or 0."""
    where = f"{annotation}, the image"
    missing = [path for path in ("size/width", "size/height") if (tree.findtext(path) or "").strip() in ("", "0")]
    if missing and tree.tag == "annotation":
        wrong = f"{where}: {missing[0]} is {tree.findtext(missing[0])!r}"
        reading.adjust("{count} images without a size in their XML: taken from the image", f"{wrong}; correct it")
        try:
            return image_size(image)
        except UserError as error:
            raise UserError(f"{wrong}; {error}") from error
    width, height = (_number(tree, f"size/{side}", where) for side in ("width", "height"))
    if min(width, height) < 1:
        raise UserError(f"{where}: size is {width:g} × {height:g}; correct it")
    return width, height


def _label(element: ET.Element, where: str, labels: dict[str, int]) -> int:
    name = (element.findtext("name") or "").strip()
    if name not in labels:
        hint = "the file is not in the encoding it declares; save it as UTF-8" if "\ufffd" in name else ""
        hint = hint or f"{nearest(name, labels)} (TRANSFER.CLASSES)"
        raise UserError(f"{where}: class {name!r} is not one of the task's; {hint}")
    return labels[name]


def _box(
    element: ET.Element, where: str, width: float, height: float, reading: Reading
) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (_number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    beyond_x, beyond_y = max(1 - x0, x1 - width), max(1 - y0, y1 - height)
    if x0 <= x1 and y0 <= y1 and beyond_x <= SLACK and beyond_y <= SLACK:
        return x0, y0, x1, y1
    text = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
    wrong = f"{where}: {text} is empty or outside the image ({width:g} × {height:g}); correct or remove it"
    clipped = max(x0, 1.0), max(y0, 1.0), min(x1, width), min(y1, height)
    is_far = beyond_x > slack_of(width) or beyond_y > slack_of(height)
    if is_far or clipped[0] > clipped[2] or clipped[1] > clipped[3]:
        raise UserError(wrong)
    reading.adjust("{count} boxes up to {extent} px outside their image: clipped", wrong, max(beyond_x, beyond_y))
    return clipped


def _is_difficult(element: ET.Element, where: str, reading: Reading) -> bool:
    flag = (element.findtext("difficult") or "0").strip().lower()
    if flag not in ("", "0", "1", "false", "true"):
        wrong = f"{where}: difficult is {flag!r}, neither 0 nor 1; correct it"
        reading.adjust("{count} flags difficult that are neither 0 nor 1: taken as 0", wrong)
    return flag in ("1", "true")


def _number(element: ET.Element, path: str, where: str) -> float:
    text = element.findtext(path)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {path} is {text!r}, not a number; correct it")
    return number


def parse_xml(annotation: Path, reading: Reading) -> ET.Element:
    """Parse an annotation, in any encoding that Python knows.

    Raises:
        UserError: it does not exist, cannot be read, or is not XML; names the line.
    """
    try:
        data = read_input(annotation, XML_LIMIT)
    except FileNotFoundError as error:
        raise UserError(f"{annotation} does not exist, but its image is listed; is the set complete?") from error
    except OSError as error:
        raise UserError(f"cannot read {annotation}: {error.strerror}") from error
    try:
        return ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:  # expat decodes no encoding of several bytes
        fault = error
    for encoding, note in _encodings(data):
        with contextlib.suppress(ET.ParseError, ValueError, LookupError):
            tree = ET.fromstring(data.decode(encoding, "replace" if "replaced" in note else "strict").lstrip())
            if note:
                reading.adjust(note, f"{annotation}: it is not in the encoding that it declares; save it as UTF-8")
            return tree
    if isinstance(fault, ET.ParseError):
        raise UserError(f"{annotation}, line {fault.position[0]}: not XML ({fault}); is the file truncated?") from fault
    raise UserError(f"{annotation}: not XML in the encoding that it declares ({fault}); save it as UTF-8") from fault


def _encodings(data: bytes) -> Iterator[tuple[str, str]]:
    """Encodings that a file may have, each with the adjustment that it takes: what its first bytes say comes first."""
    mark = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "")
    found = DECLARATION.match(data.removeprefix(codecs.BOM_UTF8))
    declared = mark or (found[1].decode() if found else "utf-8")
    yield declared, ""
    with contextlib.suppress(LookupError):
        if wider := SUPERSETS.get(codecs.lookup(declared).name):
            yield wider, ""
    yield "utf-8", "{count} XML files in another encoding than they declare: read as UTF-8"
    yield "utf-8", "{count} XML files in another encoding than they declare: unknown characters replaced"
