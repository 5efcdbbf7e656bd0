"""Convert a set with YOLO's text labels to COCO files: boxes, and polygons as masks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_transfer.errors import UserError, nearest
from transfer.tasks.divide import write_new
from transfer.tasks.images import abbreviate_faults
from transfer.tasks.reading import IMAGE_ENDINGS, image_size

SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
"""YOLO's names of splits, as keys of data.yaml and as folders, and those of the files written here."""
HAIR = 0.01
"""Share of a side by which a coordinate may exceed its image, from rounding; it is clipped."""
SHOWN = 20


@dataclass
class _Found:
    """What the label files of a split hold."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def import_yolo(source: Path, out: Path) -> list[str]:
    """Convert a set to `out/instances_<split>.json`, in which images are named relative to the set's folder.

    Args:
        source: the set's folder or its data.yaml; images/ and labels/ with or without train/, val/, test/ below or
            above them, or images and labels side by side. Without data.yaml, classes.txt names the classes.
        out: the folder to write to.

    Returns:
        What was written, line by line.

    Raises:
        UserError: a file is missing or broken; bad lines are named with file and line; nothing is written.
    """
    description, file = _description(source)
    root = file.parent if file else source
    names = _class_names(description, file, root)
    faults: list[str] = []
    found = {
        name: _convert(images, root, names, "kpt_shape" in description, faults)
        for name, images in _splits(description, file, root).items()
    }
    if faults:
        raise UserError(f"{len(faults)} faults, nothing was written: " + "; ".join(abbreviate_faults(faults, SHOWN)))
    categories = [{"id": number + 1, "name": name} for number, name in sorted(names.items())]
    texts, lines = {}, []
    for name, part in found.items():
        target = out / f"instances{f'_{name}' if name else ''}.json"
        info = {"description": f"converted from YOLO labels in {root.resolve().name}"}
        content = {"info": info, "images": part.images, "annotations": part.annotations, "categories": categories}
        texts[target] = json.dumps(content) + "\n"
        said = [f"{count} {what}" for what, count in part.counts.items() if count]
        lines.append(f"{target}: {len(part.images)} images, {len(part.annotations)} objects ({', '.join(said)})")
    write_new(texts)
    return [*lines, f"CLASSES: {json.dumps(list(names.values()), ensure_ascii=False)}", f"FOLDER: {root}"]


def _description(source: Path) -> tuple[dict[str, Any], Path | None]:
    """The content of data.yaml, all values as text, and the file; empty and None where there is none."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give the folder of a YOLO set, or its data.yaml")
    files = [source] if source.is_file() else [source / "data.yaml", *sorted([*source.glob("*.y*ml")])]
    for file in files:
        if not file.is_file():
            continue
        try:
            content = yaml.load(file.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
        except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        if isinstance(content, dict) and ("names" in content or "train" in content):
            return content, file
    if source.is_file():
        raise UserError(f"{source} has neither names nor train; give the data.yaml of a YOLO set")
    return {}, None


def _class_names(description: Mapping[str, Any], file: Path | None, root: Path) -> dict[int, str]:
    listed = description.get("names")
    if listed is None:
        lists = [root / "classes.txt", root / "labels" / "classes.txt", *sorted(root.glob("*.names"))]
        lists += sorted(root.glob("*/classes.txt")) + sorted(root.glob("*/*/classes.txt"))
        file = next((path for path in lists if path.is_file()), None)
        if file is None:
            raise UserError(f"{root} names no classes: neither data.yaml with names nor classes.txt is there")
        listed = _lines(file)
    pairs = dict(enumerate(listed)) if isinstance(listed, list) else listed
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(name, str) for name in pairs.values()):
        raise UserError(f"{file}: names must be a list of the classes, or numbers and classes")
    if not all(str(number).isdecimal() for number in pairs):
        raise UserError(f"{file}: names must have numbers as keys, from 0")
    names = {int(number): name.strip() for number, name in pairs.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"{file}: names lists {twice[0]!r} twice; give each class its own name")
    return dict(sorted(names.items()))


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; it must be text in UTF-8") from error
    return [line for part in text.splitlines() if (line := part.strip())]


def _splits(description: Mapping[str, Any], file: Path | None, root: Path) -> dict[str, list[Path]]:
    """The images of each split; the split without a name holds all of a set that has none."""
    found: dict[str, list[Path]] = {}
    for key, split in SPLITS.items():
        places = description.get(key) or []
        for place in [places] if isinstance(places, str) else places:
            base = root / str(description.get("path") or "")
            path = next((path for path in _places(str(place), base, root) if path.exists()), None)
            if path is None and split != "test":  # Roboflow's data.yaml names a test folder that there need not be
                raise UserError(f"{file}: {key}: {place} does not exist below {base}; correct the path")
            if path is not None:
                found.setdefault(split, []).extend(_images(path))
    for key, split in SPLITS.items() if not found else ():
        path = next((one for one in (root / "images" / key, root / key / "images", root / key) if one.is_dir()), None)
        if path is not None:
            found.setdefault(split, []).extend(_images(path))
    if not found:
        found[""] = _images(root / "images" if (root / "images").is_dir() else root)
    for split, images in found.items():
        if not images:
            raise UserError(f"{root} holds no images{f' of {split}' if split else ''}; looked for images/ and labels/")
    return {split: list(dict.fromkeys(images)) for split, images in found.items()}


def _places(place: str, base: Path, root: Path) -> Iterator[Path]:
    """Where a path of data.yaml may lead; Roboflow writes `../train/images` for train/images."""
    yield from (base / place, root / place)
    while place.startswith("../"):
        place = place.removeprefix("../")
        yield from (base / place, root / place)


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
        return [file for file in files if not file.name.startswith(".")]
    return [
        next((file for file in (path.parent / line, Path(line)) if file.exists()), Path(line)) for line in _lines(path)
    ]


def _label_file(image: Path, root: Path) -> Path:
    """`labels` in place of the last `images` in the path, else beside the image."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part.lower() == "images"]
    candidates = [image.with_suffix(".txt"), root / "labels" / f"{image.stem}.txt"]
    if places:
        parts[places[-1]] = "labels"
        candidates.insert(0, Path(*parts).with_suffix(".txt"))
    return next((file for file in candidates if file.is_file()), candidates[0])


def _convert(
    images: Sequence[Path], root: Path, names: Mapping[int, str], keypoints: bool, faults: list[str]
) -> _Found:
    found = _Found()
    labels = [_label_file(image, root) for image in images]
    if not any(label.is_file() for label in labels):
        raise UserError(f"{root}: none of {len(images)} images has a label file, such as {labels[0]}")
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(_size_or_fault, images))
    for number, (image, label, size) in enumerate(zip(images, labels, sizes, strict=True), start=1):
        if isinstance(size, str):
            faults.append(size)
            continue
        path, top = image.absolute(), root.absolute()
        name = (path.relative_to(top) if path.is_relative_to(top) else path).as_posix()
        found.images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        found.counts["images without a label file"] += not label.is_file()
        lines = label.read_text(encoding="utf-8-sig", errors="replace").splitlines() if label.is_file() else []
        found.counts["images without objects"] += not any(line.strip() for line in lines)
        seen: set[tuple[str, ...]] = set()
        for row, line in enumerate(lines, start=1):
            fields = tuple(line.split())
            found.counts["lines twice: read once"] += fields in seen
            if not fields or fields in seen:
                continue
            seen.add(fields)
            try:
                entry = _annotation(fields, names, size, keypoints, found.counts)
            except ValueError as error:
                faults.append(f"{label}, line {row}: {error}")
                continue
            found.annotations.append({"id": len(found.annotations) + 1, "image_id": number, **entry, "iscrowd": 0})
    folders = {label.parent for label in labels}
    others = {file for folder in folders for file in folder.glob("*.txt")} - set(labels)
    found.counts["label files without an image"] += sum(file.name != "classes.txt" for file in others)
    return found


def _size_or_fault(image: Path) -> tuple[int, int] | str:
    try:
        return image_size(str(image))
    except UserError as error:
        return str(error)


def _annotation(
    fields: Sequence[str], names: Mapping[int, str], size: tuple[int, int], keypoints: bool, counts: Counter[str]
) -> dict[str, Any]:
    """Category, box, area and polygon of a line: `class x y width height`, or `class x y x y x y …`, as shares.

    Raises:
        ValueError: says what is wrong.
    """
    numbers = [_number(text) for text in fields]
    is_box = len(numbers) == 5 or (keypoints and len(numbers) > 5)
    if not is_box and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise ValueError(f"it has {len(numbers)} numbers; a box has 5, a polygon an odd number from 7")
    if numbers[0] not in names:
        raise ValueError(f"class {fields[0]} is none of names ({nearest(fields[0], map(str, names))})")
    if is_box:
        x, y, width, height = numbers[1:5]
        points = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    else:
        points = numbers[1:]
    if min(points) < -HAIR or max(points) > 1 + HAIR:
        raise ValueError(
            f"{' '.join(fields[1:5])} is outside the image; the numbers must be shares of its sides, 0 to 1"
        )
    counts["coordinates a hair outside: clipped"] += sum(not -1e-4 <= point <= 1 + 1e-4 for point in points)
    xs, ys = ([min(max(p, 0.0), 1.0) * side for p in points[i::2]] for i, side in enumerate(size))
    left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    corners = list(zip(xs, ys, strict=True))
    area = width * height
    if not is_box:
        pairs = zip(corners, [*corners[1:], corners[0]], strict=True)
        area = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2
    if (is_box and (numbers[3] <= 0 or numbers[4] <= 0)) or min(width, height, area) <= 0:
        raise ValueError(f"{' '.join(fields[1:5])} is empty")
    counts["boxes" if is_box else "polygons"] += 1
    entry = {"category_id": int(numbers[0]) + 1, "bbox": _rounded([left, top, width, height]), "area": round(area, 3)}
    return entry if is_box else {**entry, "segmentation": [_rounded([side for xy in corners for side in xy])]}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a number")
    return number
