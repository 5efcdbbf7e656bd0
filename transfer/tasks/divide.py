"""Divide a labelled set into training and validation images: lists of a VOC folder, or two COCO files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import read_json, write_text
from transfer.tasks.reading import IMAGE_ENDINGS, Reading
from transfer.tasks.voc import find_image
from transfer.tasks.voc_lists import VOCFolders


def divide(source: Path, val: float, seed: int) -> list[str]:
    """Divide a set and write `train` and `val`; which part an image is in depends on its id and the seed alone.

    Args:
        source: a folder of images and VOC's XML files, or a COCO file (or a folder with a single one).
        val: share of the images for validation, from 0 to below 1; at least one image, unless it is 0.
        seed: of the division.

    Returns:
        What was written, line by line.

    Raises:
        UserError: nothing to divide is there, or a file that would be written exists with other content.
    """
    if not 0 <= val < 1:
        raise UserError(f"--val {val:g}: give a share from 0 to below 1, such as 0.2")
    if source.is_file():
        return _divide_coco(source, val, seed)
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give a folder with XML files, or a COCO file")
    folders = VOCFolders.below(source, Reading())
    found = sorted(folders.annotations.rglob("*.xml")) if folders.annotations.is_dir() else []
    annotations = [file for file in found if not file.name.startswith(".")]
    if annotations:
        return _divide_voc(source, folders, annotations, val, seed)
    files = [file for folder in (source, source / "annotations") for file in sorted(folder.glob("*.json"))]
    if not files:
        advice = f"labels of YOLO become one by python tools/data.py import yolo {source} OUT"
        raise UserError(f"{source} holds no XML files and no COCO file; {advice}")
    if len(files) > 1:
        raise UserError(f"{source} holds {len(files)} JSON files; give one of {abbreviate([str(f) for f in files])}")
    return _divide_coco(files[0], val, seed)


def _divide_voc(source: Path, folders: VOCFolders, annotations: Sequence[Path], val: float, seed: int) -> list[str]:
    ids, images, alone = [], set(), []
    for file in annotations:
        image_id = file.relative_to(folders.annotations).as_posix()[: -len(".xml")]
        if image_id != image_id.strip() or not image_id.isprintable():
            raise UserError(f"{str(file)!a}: its name cannot be a line of a list; rename it and its image")
        try:
            images.add(find_image(image_id, "jpg", file, folders, Reading()))
            ids.append(image_id)
        except UserError:
            alone.append(str(file))
    parts = _parts(ids, val, seed, f"{source}: images with an XML file")
    lists = source / "ImageSets" / "Main"
    write_new({lists / f"{part}.txt": "".join(f"{name}\n" for name in names) for part, names in parts.items()})
    lines = [f"{lists / part}.txt: {len(names)} images" for part, names in parts.items()]
    pictures = (str(file) for file in folders.images.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    without = sorted(name for name in pictures if name not in images and not Path(name).name.startswith("."))
    lines += [f"{len(alone)} XML files without one image, not listed: {abbreviate(alone)}"] if alone else []
    lines += [f"{len(without)} images without an XML file, not listed: {abbreviate(without)}"] if without else []
    return lines


def _divide_coco(file: Path, val: float, seed: int) -> list[str]:
    content = read_json(file)
    images, annotations = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    for key, entries in (("images", images), ("annotations", annotations)):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file}: {key!r} is no list of objects; a COCO file has images and annotations")
    assert isinstance(images, list) and isinstance(annotations, list)
    ids = [_same_id(image.get("id")) for image in images]
    known: set[str] = set()
    for index, one in enumerate(ids):
        if one in known:
            raise UserError(f"{file}, images[{index}]: the id {one} is used twice")
        known.add(one)
    of_image = [_same_id(entry.get("image_id")) for entry in annotations]
    for index, image_id in enumerate(of_image):
        if image_id not in known:
            raise UserError(f"{file}, annotations[{index}]: no image has the id {image_id}")
    parts = {part: set(names) for part, names in _parts(ids, val, seed, f"{file}: images").items()}
    texts, lines = {}, []
    for part, chosen in parts.items():
        own = {
            "images": [image for image, one in zip(images, ids, strict=True) if one in chosen],
            "annotations": [entry for entry, one in zip(annotations, of_image, strict=True) if one in chosen],
        }
        target = file.with_name(f"{file.stem}_{part}.json")
        texts[target] = json.dumps({**content, **own}) + "\n"
        lines.append(f"{target}: {len(own['images'])} images, {len(own['annotations'])} objects")
    write_new(texts)
    return lines


def _same_id(value: Any) -> str:
    """An id as text, the same for 7, 7.0 and "7"."""
    text = str(value).strip()
    return text.removesuffix(".0") if isinstance(value, float) else text


def _parts(ids: Sequence[str], val: float, seed: int, what: str) -> dict[str, list[str]]:
    """The ids of each part, in their order."""
    if len(ids) < (2 if val else 1):
        raise UserError(f"{what}: {len(ids)}, too few to divide")
    count = min(max(round(val * len(ids)), 1), len(ids) - 1) if val else 0
    chosen = set(sorted(ids, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())[:count])
    parts = {"train": [name for name in ids if name not in chosen], "val": [name for name in ids if name in chosen]}
    return {part: names for part, names in parts.items() if names}


def write_new(texts: Mapping[Path, str]) -> None:
    """Write files that do not exist, or exist with the same text.

    Raises:
        UserError: one exists with other text; nothing is written.
    """
    for file, text in texts.items():
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise UserError(f"{file} exists with other content; move it away first (nothing was written)")
    for file, text in texts.items():
        write_text(file, text)
