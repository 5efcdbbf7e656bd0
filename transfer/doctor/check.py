"""Reading every annotation and every image of a set, with the checks a fine-tuning run makes before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import load_with_base
from common.errors import UserError
from transfer.doctor.data import RECORD, is_there, toy_classes
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.datasets import PUBLISHED, Split, data_root, find_split
from transfer.tasks.images import abbreviate_faults, image_faults
from transfer.tasks.task import Dataset, read_split

SHOWN = 20
"""How many faults of one split are told; the rest is counted."""


@dataclass(frozen=True)
class Asked:
    """One split that is to be checked.

    Attributes:
        split: which one, its paths below the root.
        classes: the names its objects may have.
        counts: hold a published split against the number of images it was published with.
    """

    split: Split
    classes: tuple[str, ...]
    counts: bool = False


@dataclass(frozen=True)
class Checked:
    """One split that was read.

    Attributes:
        split: which one.
        images, objects, difficult, crowds, empty: how many there are; `empty` counts images without objects.
        faults: what is wrong, a line each; empty when nothing is.
    """

    split: Split
    images: int = 0
    objects: int = 0
    difficult: int = 0
    crowds: int = 0
    empty: int = 0
    faults: tuple[str, ...] = ()


def splits_below(root: Path, counts: bool = False) -> list[Asked]:
    """The benchmark splits whose list or annotation file lies below a root, which may be a whole toy set.

    Raises:
        UserError: there is none.
    """
    root = _detection(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that holds VOC2007/, VOC2012/ or coco/")
    found = [split for split in (split.under(root) for split in PUBLISHED.values()) if is_there(split)]
    if not found:
        wanted = "VOC2007/ImageSets/Main/*.txt, VOC2012/ImageSets/Main/*.txt, coco/annotations/instances_*2017.json"
        raise UserError(f"{root} holds no benchmark; looked for {wanted}")
    toy = tuple(toy_classes(root))
    return [Asked(split, toy or BENCHMARK[split.layout], counts) for split in found]


def splits_of(config_file: Path, root: Path | None, counts: bool = False) -> list[Asked]:
    """The splits a task's config file names, a user's own among them; Detectron2 is not asked.

    Args:
        config_file: the task.
        root: where they lie; None: as the file, DETECTRON2_DATASETS or the default says.
        counts: as `Asked`; published splits are held against it anyway unless the file says CHECK_COUNTS False.

    Raises:
        UserError: the file is broken, or names no split or one that nobody knows.
    """
    content = load_with_base(config_file)
    own, sets = _section(content, "TRANSFER", config_file), _section(content, "DATASETS", config_file)
    names = [*(sets.get("TRAIN") or ()), *(sets.get("TEST") or ())]
    if not names:
        raise UserError(f"{config_file}: DATASETS.TRAIN and DATASETS.TEST name no split")
    base = data_root(str(own.get("DATA_ROOT") or "")) if root is None else _detection(root)
    splits = [find_split(name, base, own.get("SPLITS") or {}) for name in dict.fromkeys(names)]
    held = counts or own.get("CHECK_COUNTS", True)
    classes = tuple(own.get("CLASSES") or ())
    return [Asked(split, classes or BENCHMARK[split.layout], held) for split in splits]


def check(asked: Asked, decode: bool = False, workers: int | None = None) -> Checked:
    """Read one split and look at its images. Faults are collected, not raised, so that all of them are told.

    Args:
        asked: which split.
        decode, workers: as `image_faults`.
    """
    faults: list[str] = []
    try:
        dataset = read_split(asked.split, asked.classes, asked.counts, faults)
    except UserError as error:
        return Checked(asked.split, faults=(*faults, str(error)))
    faults += image_faults(dataset.records, decode, workers)
    return _counted(dataset, tuple(faults))


def _detection(root: Path) -> Path:
    """`root`, or its `detection` folder where `root` is a whole toy set."""
    return root / "detection" if (root / RECORD).is_file() else root


def _section(content: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{file}: {key} must hold keys and values")
    return section


def _counted(dataset: Dataset, faults: tuple[str, ...]) -> Checked:
    things = [thing for record in dataset.records for thing in record.annotations]
    return Checked(
        dataset.split,
        images=len(dataset.records),
        objects=len(things),
        difficult=sum(thing.difficult for thing in things),
        crowds=sum(thing.crowd for thing in things),
        empty=sum(not record.annotations for record in dataset.records),
        faults=faults,
    )


def lines(checked: Checked) -> list[str]:
    """A split in the report: one line, or one a fault."""
    name = f"{checked.split.name:<20}"
    if checked.faults:
        return [f"broken   {name}  {fault}" for fault in abbreviate_faults(checked.faults, SHOWN)]
    special = [f"{n} {what}" for n, what in ((checked.difficult, "difficult"), (checked.crowds, "crowd")) if n]
    objects = f"{checked.objects} objects" + (f" ({', '.join(special)})" if special else "")
    empty = f", {checked.empty} image(s) without any" if checked.empty else ""
    same = checked.split.count is None or checked.images == checked.split.count
    other = "" if same else f"; published with {checked.split.count} images"
    return [f"ok       {name}  {checked.images} images, {objects}{empty}{other}"]


def summary(found: Sequence[Checked]) -> str:
    """The report's last line."""
    broken = [checked for checked in found if checked.faults]
    if not broken:
        return f"{len(found)} splits, nothing wrong"
    return f"{len(found)} splits, {len(broken)} broken, {sum(len(checked.faults) for checked in broken)} faults"
