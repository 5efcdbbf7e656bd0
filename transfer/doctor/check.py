"""Reading every annotation below a data root, with the checks a fine-tuning run makes before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from transfer.doctor.data import RECORD, is_there, toy_classes
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.splits import PUBLISHED, Split
from transfer.tasks.task import Dataset, read


@dataclass(frozen=True)
class Checked:
    """One split that was read.

    Attributes:
        split: which one.
        images, objects, difficult, crowds, empty: how many there are; `empty` counts images without objects.
        fault: what is wrong, in one line; empty when nothing is.
    """

    split: Split
    images: int = 0
    objects: int = 0
    difficult: int = 0
    crowds: int = 0
    empty: int = 0
    fault: str = ""


def detection_root(root: Path) -> Path:
    """`root`, or its `detection` folder where `root` is a whole toy set."""
    return root / "detection" if (root / RECORD).is_file() else root


def splits_below(root: Path) -> list[Split]:
    """The benchmark splits whose list or annotation file lies below the root.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that holds VOC2007/, VOC2012/ or coco/")
    found = [split for split in (split.under(root) for split in PUBLISHED.values()) if is_there(split)]
    if not found:
        wanted = "VOC2007/ImageSets/Main/*.txt, VOC2012/ImageSets/Main/*.txt, coco/annotations/instances_*2017.json"
        raise UserError(f"{root} holds no benchmark; looked for {wanted}")
    return found


def check(split: Split, root: Path, published: bool) -> Checked:
    """Read one split. What is wrong with it is told in `fault`, not raised, so that the others are read too.

    Args:
        split: one of `splits_below(root)`.
        root: where to look for the record of a toy set, which names its classes.
        published: hold the number of images against the published one.
    """
    try:
        dataset = read(split, tuple(toy_classes(root)) or BENCHMARK[split.layout], published)
    except UserError as error:
        return Checked(split, fault=str(error))
    return _counted(dataset)


def _counted(dataset: Dataset) -> Checked:
    things = [thing for record in dataset.records for thing in record.things]
    return Checked(
        dataset.split,
        images=len(dataset.records),
        objects=len(things),
        difficult=sum(thing.difficult for thing in things),
        crowds=sum(thing.crowd for thing in things),
        empty=sum(not record.things for record in dataset.records),
    )


def line(checked: Checked) -> str:
    """One line of the report."""
    name = f"{checked.split.name:<20}"
    if checked.fault:
        return f"broken   {name}  {checked.fault}"
    special = [f"{n} {what}" for n, what in ((checked.difficult, "difficult"), (checked.crowds, "crowd")) if n]
    objects = f"{checked.objects} objects" + (f" ({', '.join(special)})" if special else "")
    empty = f", {checked.empty} image(s) without any" if checked.empty else ""
    other = "" if checked.images == checked.split.count else f"; published with {checked.split.count} images"
    return f"ok       {name}  {checked.images} images, {objects}{empty}{other}"
