"""Splits (a list of images, its layout and its folder) and their annotated images as plain data, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError, nearest

ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets"
"""Detectron2's default, too."""


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
        count: number of images of the published split; None where it is unknown.
        extension: VOC: extension of the image files.
        strict: refuse what is adjusted elsewhere (`transfer.tasks.reading`); so are the published splits read.
    """

    name: str
    layout: str
    folder: Path
    image_set: str = ""
    annotations: Path | None = None
    year: int = 2007
    count: int | None = None
    extension: str = "jpg"
    strict: bool = False

    def under(self, root: Path) -> Split:
        """The same split with its paths below `root` (an absolute path stays as it is)."""
        annotations = None if self.annotations is None else root / self.annotations
        return replace(self, folder=root / self.folder, annotations=annotations)


def _voc(year: int, image_set: str, count: int) -> Split:
    return Split(f"voc_{year}_{image_set}", "voc", Path(f"VOC{year}"), image_set, year=year, count=count, strict=True)


def _coco(image_set: str, count: int) -> Split:
    annotations = Path("coco") / "annotations" / f"instances_{image_set}2017.json"
    folder = Path("coco") / f"{image_set}2017"
    return Split(f"coco_2017_{image_set}", "coco", folder, annotations=annotations, count=count, strict=True)


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
"""The splits of the benchmarks with their published numbers of images."""


def data_root(configured: str) -> Path:
    """The folder of all splits: TRANSFER.DATA_ROOT, else $DETECTRON2_DATASETS, else `datasets`."""
    return Path(configured or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def find_split(name: str, root: Path, own: Mapping[str, Any], strict: bool = False) -> Split:
    """Find a split by its name; its paths are below `root`.

    Args:
        name: a published split's name or one of `own`.
        root: the data root.
        own: TRANSFER.SPLITS: the user's own splits by name; see `SplitEntry`.
        strict: TRANSFER.STRICT: read them strictly, as the published ones.

    Raises:
        UserError: there is no such split, or the user's entry has a wrong key or value.
    """
    if name in own:
        return replace(_own_split(name, own[name]), strict=strict).under(root)
    if name not in PUBLISHED:
        raise UserError(
            f"DATASETS: no split is called {name!r}; {nearest(name, [*own, *PUBLISHED])}; "
            "own splits go under TRANSFER.SPLITS"
        )
    return PUBLISHED[name].under(root)


def _own_split(name: str, entry: Any) -> Split:
    from ssl_transfer.formats.splits import SplitEntry  # here: tools/doctor.py imports this module without pydantic

    own = SplitEntry.parse(entry, f"TRANSFER.SPLITS.{name}")
    return Split(
        name,
        own.LAYOUT,
        Path(own.FOLDER).expanduser(),
        own.IMAGE_SET if own.LAYOUT == "voc" else "",
        Path(own.ANNOTATIONS).expanduser() if own.LAYOUT == "coco" else None,
        own.YEAR,
        own.COUNT,
        own.EXTENSION.lstrip("."),
    )


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object.

    Attributes:
        label: index into the task's class list.
        box: VOC: x0, y0, x1, y1 as in the XML (1-based, inclusive integers). COCO: x, y, width, height in pixels.
        difficult: VOC's flag: used in training, ignored in evaluation.
        crowd: COCO's flag: a group of objects with one mask.
        segmentation: COCO: polygons `[[x, y, …], …]` or a compressed RLE; None where there is none.
        number: COCO: the annotation's id.
        area: COCO: pixels, by which the metric sorts objects into small, medium and large.
    """

    label: int
    box: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    segmentation: Any = None
    number: int = 0
    area: float = 0.0


@dataclass(frozen=True, slots=True)
class DatasetDict:
    """One annotated image.

    Attributes:
        file: path of the image.
        image_id: VOC: the file's stem (str). COCO: the image's id (int).
        width, height: size in pixels, from the annotation file.
        annotations: its objects, in the order of the file.
    """

    file: str
    image_id: str | int
    width: int
    height: int
    annotations: tuple[Annotation, ...] = field(default_factory=tuple)
