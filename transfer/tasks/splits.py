"""Splits: which list of images, in which layout, under which folder of the data root."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest

LAYOUTS = ("voc", "coco")
ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets"
"""Where Detectron2, too, looks when nothing else is said."""


@dataclass(frozen=True)
class Split:
    """One list of annotated images.

    Attributes:
        name: as `DATASETS.TRAIN` and `DATASETS.TEST` name it.
        layout: `voc` (a VOCdevkit year) or `coco` (one JSON file).
        folder: VOC: the folder that holds Annotations, ImageSets and JPEGImages. COCO: the folder of the images.
        image_set: VOC: the list under ImageSets/Main, without `.txt`; empty for COCO.
        annotations: COCO: the JSON file; None for VOC.
        year: VOC: whose AP is computed: 2007 (11 points) or 2012 (area under the curve).
        count: how many images the published split has; None where nobody knows.
        extension: VOC: of the image files.
    """

    name: str
    layout: str
    folder: Path
    image_set: str = ""
    annotations: Path | None = None
    year: int = 2007
    count: int | None = None
    extension: str = "jpg"

    def under(self, root: Path) -> Split:
        """The same split with its paths below `root` (an absolute path stays as it is)."""
        annotations = None if self.annotations is None else root / self.annotations
        return replace(self, folder=root / self.folder, annotations=annotations)


def _voc(year: int, image_set: str, count: int) -> Split:
    return Split(f"voc_{year}_{image_set}", "voc", Path(f"VOC{year}"), image_set, year=year, count=count)


def _coco(image_set: str, count: int) -> Split:
    annotations = Path("coco") / "annotations" / f"instances_{image_set}2017.json"
    return Split(
        f"coco_2017_{image_set}", "coco", Path("coco") / f"{image_set}2017", annotations=annotations, count=count
    )


PUBLISHED = {
    split.name: split
    for split in (
        _voc(2007, "train", 2501),
        _voc(2007, "val", 2510),
        _voc(2007, "trainval", 5011),
        _voc(2007, "test", 4952),
        _voc(2012, "train", 5717),
        _voc(2012, "val", 5823),
        _voc(2012, "trainval", 11540),
        _coco("train", 118287),
        _coco("val", 5000),
    )
}
"""The splits of the benchmarks, with the number of images each was published with."""

_USER_KEYS = {
    "LAYOUT": str,
    "FOLDER": str,
    "IMAGE_SET": str,
    "ANNOTATIONS": str,
    "YEAR": int,
    "COUNT": int,
    "EXTENSION": str,
}


def data_root(configured: str) -> Path:
    """The folder all splits lie under: TRANSFER.DATA_ROOT, else $DETECTRON2_DATASETS, else `datasets`."""
    return Path(configured or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def find_split(name: str, root: Path, own: Mapping[str, Any]) -> Split:
    """The split called `name`, its paths below `root`.

    Args:
        name: a published split's name or one of `own`.
        root: the data root.
        own: TRANSFER.SPLITS: the user's own splits, `{name: {LAYOUT, FOLDER, IMAGE_SET | ANNOTATIONS, YEAR, COUNT}}`.

    Raises:
        UserError: no split is called so, or the user's entry has a wrong key or value.
    """
    if name in own:
        return _own_split(name, own[name]).under(root)
    if name not in PUBLISHED:
        raise UserError(
            f"DATASETS: no split is called {name!r}; {nearest(name, [*own, *PUBLISHED])}; "
            "own splits go under TRANSFER.SPLITS"
        )
    return PUBLISHED[name].under(root)


def _own_split(name: str, entry: Any) -> Split:
    where = f"TRANSFER.SPLITS.{name}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: must hold keys and values: {', '.join(_USER_KEYS)}")
    for key, value in entry.items():
        if key not in _USER_KEYS:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, _USER_KEYS)}")
        if type(value) is not _USER_KEYS[key]:
            raise UserError(
                f"{where}.{key}: must be of type {_USER_KEYS[key].__name__}, not {type(value).__name__} ({value!r})"
            )
    layout = entry.get("LAYOUT")
    if layout not in LAYOUTS:
        raise UserError(f"{where}.LAYOUT: must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    for key in ("FOLDER", "IMAGE_SET" if layout == "voc" else "ANNOTATIONS"):
        if not entry.get(key):
            raise UserError(f"{where}: {key} is missing; the layout {layout} needs it")
    if entry.get("YEAR", 2007) not in (2007, 2012):
        raise UserError(f"{where}.YEAR: VOC's metric is that of 2007 or of 2012, not {entry['YEAR']}")
    return Split(
        name,
        layout,
        Path(entry["FOLDER"]).expanduser(),
        entry.get("IMAGE_SET", "") if layout == "voc" else "",
        Path(entry["ANNOTATIONS"]).expanduser() if layout == "coco" else None,
        entry.get("YEAR", 2007),
        entry.get("COUNT"),
        entry.get("EXTENSION", "jpg").lstrip("."),
    )
