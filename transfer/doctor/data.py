"""Data roots: which benchmark splits lie there, counted without opening an annotation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import read_json
from transfer.doctor.finding import Finding
from transfer.tasks.datasets import DEFAULT_ROOT, PUBLISHED, ROOT_VARIABLE, Split
from transfer.tasks.voc import image_list

DRAW = "python tools/data.py toy datasets/toy"
FETCH = "python tools/data.py download voc2007|voc2012|coco ROOT"
RECORD = "toy.json"


@dataclass(frozen=True)
class Count:
    """What of one split is there.

    Attributes:
        split: which one, its paths below the root.
        listed: how many images it has.
        fault: what is wrong with it, in one line; empty when nothing is.
    """

    split: Split
    listed: int
    fault: str = ""

    @property
    def whole(self) -> bool:
        """Whether it has as many images as were published."""
        return not self.fault and self.listed == self.split.count


def data_roots(given: Path | None = None) -> list[Path]:
    """Where to look: the folder given, else $DETECTRON2_DATASETS and `datasets`; and a toy set below them."""
    if given is not None:
        roots = [given]
    else:
        variable = os.environ.get(ROOT_VARIABLE)
        roots = [*([Path(variable).expanduser()] if variable else []), Path(DEFAULT_ROOT)]
    toys = [toy for root in roots for toy in (root / "detection", root / "toy" / "detection") if toy.is_dir()]
    return list(dict.fromkeys([*roots, *toys]))


def toy_classes(root: Path) -> list[str]:
    """The classes of the toy set a root belongs to; none when it belongs to none."""
    record = root.parent / RECORD
    return list(read_json(record)["classes"]) if record.is_file() else []


def look(given: Path | None = None) -> list[Finding]:
    """One finding a root that holds something, and one that says what to do when none does."""
    roots = data_roots(given)
    counted = [(root, counts) for root in roots if (counts := count_splits(root))]
    if counted:
        return [_finding(root, counts) for root, counts in counted]
    advice = (
        f"set {ROOT_VARIABLE} to the folder that holds VOC2007/, VOC2012/ and coco/; to fetch them: {FETCH}; "
        f"for a toy set: {DRAW}"
    )
    where = ", ".join(f"{root}{'' if root.is_dir() else ' (does not exist)'}" for root in roots)
    return [Finding("data", "warning", f"no VOC2007, VOC2012 or coco in {where}", advice)]


def count_splits(root: Path) -> list[Count]:
    """The benchmark splits that lie below a root, counted by their lists (VOC) or their images (COCO)."""
    below = [split.under(root) for split in PUBLISHED.values()]
    return [_count(split) for split in below if is_there(split)]


def is_there(split: Split) -> bool:
    """Whether a split's list (VOC) or annotation file (COCO) exists."""
    if split.annotations is not None:
        return split.annotations.is_file()
    return (split.folder / "ImageSets" / "Main" / f"{split.image_set}.txt").is_file()


def _count(split: Split) -> Count:
    folder = split.folder if split.layout == "coco" else split.folder / "JPEGImages"
    try:
        images = {entry.name for entry in os.scandir(folder) if entry.name.endswith(".jpg")}
    except OSError as error:
        return Count(split, 0, f"{folder}: {error.strerror}")
    if split.layout == "coco":
        return Count(split, len(images))
    try:
        ids = image_list(split)
    except UserError as error:
        return Count(split, 0, str(error))
    absent = [name for name in ids if f"{name}.jpg" not in images]
    return Count(
        split, len(ids), f"{len(absent)} images are not in {folder}, such as {absent[0]}.jpg" if absent else ""
    )


def _finding(root: Path, counts: list[Count]) -> Finding:
    told = ", ".join(f"{count.split.name} {count.listed}" for count in counts)
    faults = [f"{count.split.name}: {count.fault}" for count in counts if count.fault]
    if faults:
        return Finding(
            "data", "warning", f"{root}: {faults[0]}", f"complete the set; then python tools/data.py check {root}"
        )
    if toy_classes(root):
        return Finding("data", "ok", f"{root}: a toy set: {told}")
    partial = [count for count in counts if not count.whole]
    if partial:
        less = f"{partial[0].split.name} was published with {partial[0].split.count} images"
        return Finding("data", "warning", f"{root}: {told}", f"{less}: results on this compare with nothing published")
    return Finding("data", "ok", f"{root}: {told}")
