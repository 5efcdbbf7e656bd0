"""Read a split in COCO's layout; errors name file and object.

The result equals that of Detectron2's `load_coco_json`: images in the order of their ids, annotations in the order of
the file, category ids made contiguous in ascending order. Polygons of less than three points are dropped, and objects
without another polygon with them.

What label tools write in their own way (no `iscrowd`, ids as text, …) is adjusted and counted, or refused where the
split is read strictly. Only keys that training or evaluation use are looked at, and all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError, abbreviate, nearest
from ssl_transfer.files import read_json
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.masks import Box, check_segmentation, mask_area
from transfer.tasks.reading import SMALLEST_SLACK, ImageFolder, Reading, image_size, slack_of

LARGEST_ID = 2**53
"""Ids of images pass through float64 on their way to the metric."""
LARGEST_IMAGE = 2**31
"""Pixels: the run lengths of masks are counted in 32 bits."""
Key = int | str
"""An id as the file means it: a whole number, also where it is written as text or as 1.0; else text."""


@dataclass(frozen=True)
class Categories:
    """The categories of a COCO file.

    Attributes:
        names: in ascending order of their ids, which is the order of the task's labels; classes that the file does not
            list come last.
        labels: category id → label.
        missing: classes of the task that the file does not list.
    """

    names: tuple[str, ...]
    labels: Mapping[int, int]
    missing: tuple[str, ...] = ()


def read_coco(
    split: Split, classes: Sequence[str], reading: Reading | None = None
) -> tuple[list[DatasetDict], Categories]:
    """Read every annotation of a split.

    Args:
        split: a split of layout `coco`.
        classes: the task's class names.
        reading: collects faults (images and objects with faults are left out) and adjustments; by default the first
            fault is raised.

    Raises:
        UserError: the file or an image is missing or broken, the categories differ, or an object is not valid.
    """
    assert split.annotations is not None
    file = _CocoFile(split.annotations, split.folder, reading or Reading(split.strict))
    content = read_json(split.annotations)
    images, annotations, listed = (
        _list_of(content, key, split.annotations) for key in ("images", "annotations", "categories")
    )
    categories, labels = file.categories(listed, classes, annotations)
    records = file.images(images)
    file.objects(annotations, records, labels, categories.missing)
    ordered = sorted(records.values(), key=lambda image: image.image_id)
    return [image.record() for image in ordered if image.file], categories


@dataclass
class _Image:
    """An image entry whose values were looked at; `file` is empty where a fault was found."""

    image_id: int
    file: str = ""
    name: str = ""
    width: int = 0
    height: int = 0
    annotations: list[Annotation] = field(default_factory=list)

    def record(self) -> DatasetDict:
        return DatasetDict(self.file, self.image_id, self.width, self.height, tuple(self.annotations))


@dataclass(frozen=True)
class _CocoFile:
    """The entries of an annotation file, one method for each of its lists.

    Attributes:
        path: the file.
        folder: of the images.
        reading: collects faults and adjustments.
    """

    path: Path
    folder: Path
    reading: Reading

    def categories(
        self, listed: list[Any], classes: Sequence[str], annotations: list[Any]
    ) -> tuple[Categories, dict[Key, int]]:
        """The categories, and the label of each id that the file's annotations may use."""
        used = {key_of(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
        names = self._category_names(listed)
        self._check_names(names, used, classes)
        ids = {name: [key for key in names if names[key] == name] for name in names.values() if name in classes}
        for name, keys in ids.items():
            if len(keys) > 1:
                what = f"categories {' and '.join(map(repr, keys))} are both called {name!r}"
                self.reading.adjust(f"{what}: taken as one", f"{self.path}: {what}; remove one of them")
        main = {name: next((key for key in keys if key in used), keys[0]) for name, keys in ids.items()}
        order = list(names)
        ordered = sorted(main, key=lambda name: order.index(main[name]))
        labels = {key: label for label, name in enumerate(ordered) for key in ids[name]}
        numbers = self._numbers([main[name] for name in ordered], "categories")
        missing = [name for name in classes if name not in main]
        free = (number for number in count(1) if number not in numbers)
        numbers += [next(free) for _ in missing]
        by_number = {number: label for label, number in enumerate(numbers)}
        return Categories((*ordered, *missing), by_number, tuple(missing)), labels

    def _check_names(self, names: Mapping[Key, str], used: Collection[Any], classes: Sequence[str]) -> None:
        """Check that each class is a category, and each category a class or without an object."""
        unknown = {name: key for key, name in names.items() if name not in classes}
        for name, key in unknown.items():
            if key in used or self.reading.strict:
                raise UserError(
                    f"{self.path}: category {name!r} is not one of the task's classes; "
                    f"{nearest(name, classes)} (TRANSFER.CLASSES)"
                )
        if unknown:
            self.reading.adjust(f"categories without an object left out: {abbreviate([*unknown])}", "")
        missing = [name for name in classes if name not in names.values()]
        for name in missing:
            known = nearest(name, names.values())
            refusal = f"{self.path}: has no category {name!r}, which the task has; {known} (TRANSFER.CLASSES)"
            self.reading.adjust(f"no category {abbreviate(missing)}: no object of it", refusal)

    def _category_names(self, listed: list[Any]) -> dict[Key, str]:
        """Names by id, ids in ascending order."""
        names: dict[Key, str] = {}
        for index, entry in enumerate(listed):
            where = f"{self.path}, categories[{index}]"
            key, name = self._key(entry, "id", where), entry.get("name")
            if type(name) in (int, float):
                self.reading.adjust("names of categories that are numbers taken as text", _wrong(where, "name", name))
                name = str(name)
            if not isinstance(name, str) or not name:
                raise UserError(_wrong(where, "name", name, "text"))
            if names.setdefault(key, name) != name:
                raise UserError(f"{where}: the id {key!r} is used twice, for {names[key]!r} and {name!r}")
        return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def images(self, entries: list[Any]) -> dict[Key, _Image]:
        """The images by the ids of the file."""
        found: dict[Key, _Image] = {}
        folder = ImageFolder(self.folder)
        for index, entry in enumerate(entries):
            where = f"{self.path}, images[{index}]"
            try:
                key = self._key(entry, "id", where)
                if key in found:
                    raise UserError(f"{where}: the id {key!r} is used twice; remove or renumber one of the images")
                found[key] = _Image(0)
                found[key] = self._image(entry, folder, where)
            except UserError as error:
                self.reading.add_fault(error)
        for key, number in zip(found, self._numbers(list(found), "images"), strict=True):
            found[key].image_id = number
        moved = Counter(
            image.file for image in found.values() if image.file and image.file != str(self.folder / image.name)
        )
        for file, times in moved.items():
            if times > 1:
                self.reading.add_fault(f"{self.path}: {times} images of other names are found as {file}; rename them")
        return found

    def _image(self, entry: dict[str, Any], folder: ImageFolder, where: str) -> _Image:
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(_wrong(where, "file_name", name, "text"))
        width, height = (self._side(entry.get(key), key, where) for key in ("width", "height"))
        if width * height > LARGEST_IMAGE:
            raise UserError(f"{where}: {width} × {height} is no image's size; correct width and height")
        file = folder.find(name, self.path, self.reading)
        if not (width and height):
            self.reading.adjust("{count} images without a size: their files' own", f"{where}: has no width or height")
            width, height = image_size(file)
        return _Image(0, file, name, width, height)

    def _side(self, value: Any, key: str, where: str) -> int:
        """Width or height; 0 where there is none."""
        if type(value) is int and value > 0:
            return value
        whole = key_of(value)
        if value in (None, 0, "") or (type(whole) is int and whole > 0):
            if whole:
                self.reading.adjust("sizes such as 640.0 taken as whole numbers", _wrong(where, key, value, "int"))
            return int(whole or 0)
        raise UserError(_wrong(where, key, value, "int, 1 or more"))

    def objects(
        self, entries: list[Any], images: Mapping[Key, _Image], labels: Mapping[Key, int], missing: Sequence[str]
    ) -> None:
        """Read the annotations into their images."""
        numbers = self._annotation_ids(entries)
        for index, (entry, number) in enumerate(zip(entries, numbers, strict=True)):
            try:
                if not isinstance(entry, dict):
                    raise UserError(f"must hold keys and values, not {entry!r:.60}")
                key = self._key(entry, "image_id")
                if key not in images:
                    raise UserError(f"no image has the id {entry['image_id']!r:.60}")
                if images[key].file:
                    images[key].annotations += self._object(entry, number, images[key], labels, missing)
            except UserError as error:
                identity = f" (id {entry['id']!r:.40})" if isinstance(entry, dict) and "id" in entry else ""
                self.reading.add_fault(f"{self.path}, annotations[{index}]{identity}: {error}")

    def _annotation_ids(self, entries: list[Any]) -> list[int]:
        """An id for each annotation: the metric needs only that they differ, and that none is 0."""
        keys: list[Key | None] = []
        seen: set[Key] = set()
        for index, entry in enumerate(entries):
            given = entry.get("id") if isinstance(entry, dict) else None
            key = given if type(given) is int else key_of(given)
            if self.reading.strict and type(given) is not int:
                self.reading.add_fault(_wrong(f"{self.path}, annotations[{index}]", "id", given))
            elif key in seen:
                twice = f"the id {key!r} is used twice; remove or renumber one of the two"
                self.reading.add_fault(f"{self.path}, annotations[{index}]: {twice}")
            keys.append(key)
            if key is not None and key != 0:
                seen.add(key)
        if self.reading.strict or all(isinstance(key, int) and 0 < key < LARGEST_ID for key in keys):
            return [key if isinstance(key, int) else 0 for key in keys]
        self.reading.adjust("annotations numbered from 1, as ids are 0, text or missing", "")
        return list(range(1, len(keys) + 1))

    def _object(
        self, entry: dict[str, Any], number: int, image: _Image, labels: Mapping[Key, int], missing: Sequence[str]
    ) -> Iterable[Annotation]:
        """An annotation's object; nothing where it is left out."""
        category = self._key(entry, "category_id")
        if category not in labels:
            absent = (
                f"; the file has no category {abbreviate([*map(repr, missing)])}, which the task has" if missing else ""
            )
            raise UserError(f"no category has the id {entry['category_id']!r}{absent}")
        crowd = self._crowd(entry.get("iscrowd"))
        box = self._box(entry.get("bbox"), image)
        size = (image.height, image.width)
        segmentation = check_segmentation(entry.get("segmentation"), size, box, self.reading)
        area = self._area(entry.get("area"), segmentation, size, box)
        if not self.reading.strict and not (box[2] > 0 and box[3] > 0):
            self.reading.adjust("{count} objects without width or height left out", "")
            return ()
        if not self.reading.strict and segmentation == []:
            self.reading.adjust("{count} objects without a polygon of three points left out", "")
            return ()
        return (Annotation(labels[category], box, crowd=crowd, segmentation=segmentation, number=number, area=area),)

    def _key(self, entry: Any, key: str, where: str = "") -> Key:
        """An entry's id as the file means it."""
        value = entry.get(key) if isinstance(entry, dict) else None
        if type(value) is int:
            return value
        meant = key_of(value)
        refusal = _wrong(where, key, value if isinstance(entry, dict) else entry)
        if meant is None:
            raise UserError(refusal)
        if isinstance(meant, int):
            self.reading.adjust("ids such as '7' or 7.0 taken as whole numbers", refusal)
        elif self.reading.strict:
            raise UserError(refusal)
        return meant

    def _numbers(self, keys: list[Key], what: str) -> list[int]:
        """The ids themselves, or their positions from 1 where one of them is no id for the metric."""
        if all(isinstance(key, int) and 0 <= key < LARGEST_ID for key in keys):
            return [int(key) for key in keys]
        odd = next(key for key in keys if not (isinstance(key, int) and 0 <= key < LARGEST_ID))
        refusal = f"{self.path}, {what}: the id {odd!r} must be a whole number from 0 to {LARGEST_ID - 1}"
        self.reading.adjust(f"{what} numbered from 1, instead of ids such as {odd!r:.40}", refusal)
        return list(range(1, len(keys) + 1))

    def _crowd(self, value: Any) -> bool:
        if value is None:
            needs = "iscrowd must be 0 or 1, it has none; COCO's metric needs it (0 for a single object)"
            self.reading.adjust("iscrowd missing: taken as 0", needs)
        elif value not in (0, 1):
            raise UserError(
                f"iscrowd must be 0 or 1, not {value!r:.60}; COCO's metric needs it (0 for a single object)"
            )
        return value == 1

    def _box(self, box: Any, image: _Image) -> Box:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
            raise UserError(f"bbox must be four numbers (x, y, width, height), not {box!r:.80}")
        x, y, width, height = box
        size = f"{image.name} ({image.width} × {image.height})"
        beyond = max(-x, -y, x + width - image.width, y + height - image.height)
        sides = (image.width, image.height)
        slack = SMALLEST_SLACK if self.reading.strict else slack_of(max(sides))
        if beyond > slack or width < 0 or height < 0:
            raise UserError(f"bbox {box} is outside its image {size} or has a negative side; correct or remove it")
        if min(box) >= 0 and 0 < max(box) < 1 and not self.reading.strict:
            raise UserError(f"bbox {box} is in fractions of the image, as it seems; multiply by its width and height")
        if self.reading.strict or beyond <= 0:
            return x, y, width, height
        self.reading.adjust("{count} boxes up to {extent} px outside clipped", "", beyond)
        x0, y0 = (min(max(low, 0), side) for low, side in zip((x, y), sides, strict=True))
        x1, y1 = (min(max(low + span, 0), side) for low, span, side in zip((x, y), box[2:], sides, strict=True))
        return x0, y0, x1 - x0, y1 - y0

    def _area(self, value: Any, segmentation: Any, size: tuple[int, int], box: Box) -> float:
        if value is None:
            needs = "area must be the object's pixels, 0 or more, it has none; COCO's metric needs it"
            self.reading.adjust("area missing: computed from mask or box", needs)
            return mask_area(segmentation, size) if segmentation else box[2] * box[3]
        if not _is_number(value) or value < 0:
            raise UserError(f"area must be the object's pixels, 0 or more, not {value!r:.60}; COCO's metric needs it")
        return value


def key_of(value: Any) -> Key | None:
    """An id as a file means it; None where it is none."""
    if type(value) is float and value.is_integer() and abs(value) < LARGEST_ID:
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text or None
    return value if type(value) is int else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST_ID < value < LARGEST_ID


def _wrong(where: str, key: str, value: Any, kind: str = "int") -> str:
    return f"{where}{': ' if where else ''}{key} must be of type {kind}, not {value!r:.60}"


def _list_of(content: Any, key: str, file: Path) -> list[Any]:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{file}: has no list {key!r}, or an empty one; "
            "an instances file of COCO has images, annotations and categories"
        )
    return value
