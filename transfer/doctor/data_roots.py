"""Data roots: their benchmark splits, counted without reading annotations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ssl_transfer.errors import UserError
from transfer.doctor.finding import Finding, ok, warning
from transfer.tasks.classes import toy_classes
from transfer.tasks.datasets import DEFAULT_ROOT, PUBLISHED, ROOT_VARIABLE, Split
from transfer.tasks.voc import image_list

DRAW = "python tools/data.py toy datasets/toy"
FETCH = "python tools/data.py download voc2007|voc2012|coco ROOT"


@dataclass(frozen=True)
class SplitCount:
    """Number of images of one split.

    Attributes:
        split: the split, its paths below the root.
        listed: number of its images.
        fault: one line that says what is wrong; empty where nothing is.
    """

    split: Split
    listed: int
    fault: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether it has the published number of images."""
        return not self.fault and self.listed == self.split.count


def data_roots(given: Path | None = None) -> list[Path]:
    """The given folder, else $DETECTRON2_DATASETS and `datasets`; also the toy sets below them."""
    if given is not None:
        roots = [given]
    else:
        variable = os.environ.get(ROOT_VARIABLE)
        roots = [*([Path(variable).expanduser()] if variable else []), Path(DEFAULT_ROOT)]
    toys = [toy for root in roots for toy in (root / "detection", root / "toy" / "detection") if toy.is_dir()]
    return list(dict.fromkeys([*roots, *toys]))


def check_data_roots(given: Path | None = None) -> list[Finding]:
    """One finding per root with data; where there is none, a finding that says what to do."""
    roots = data_roots(given)
    counted = [(root, counts) for root in roots if (counts := count_splits(root))]
    if counted:
        return [_finding(root, counts) for root, counts in counted]
    advice = (
        f"set {ROOT_VARIABLE} to the folder that holds VOC2007/, VOC2012/ and coco/; to fetch them: {FETCH}; "
        f"for a toy set: {DRAW}"
    )
    where = ", ".join(f"{root}{'' if root.is_dir() else ' (does not exist)'}" for root in roots)
    return [warning("data", f"no VOC2007, VOC2012 or coco in {where}", advice)]


def count_splits(root: Path) -> list[SplitCount]:
    """Count the benchmark splits below a root by their lists (VOC) or their images (COCO)."""
    below = [split.under(root) for split in PUBLISHED.values()]
    return [_count_images(split) for split in below if split_exists(split)]


def split_exists(split: Split) -> bool:
    """Whether a split's list (VOC) or annotation file (COCO) exists."""
    if split.annotations is not None:
        return split.annotations.is_file()
    return (split.folder / "ImageSets" / "Main" / f"{split.image_set}.txt").is_file()


def _count_images(split: Split) -> SplitCount:
    folder = split.folder if split.layout == "coco" else split.folder / "JPEGImages"
    try:
        images = {entry.name for entry in os.scandir(folder) if entry.name.endswith(".jpg")}
    except OSError as error:
        return SplitCount(split, 0, f"{folder}: {error.strerror}")
    if split.layout == "coco":
        return SplitCount(split, len(images))
    try:
        ids = image_list(split)
    except UserError as error:
        return SplitCount(split, 0, str(error))
    absent = [name for name in ids if f"{name}.jpg" not in images]
    return SplitCount(
        split, len(ids), f"{len(absent)} images are not in {folder}, such as {absent[0]}.jpg" if absent else ""
    )


def _finding(root: Path, counts: list[SplitCount]) -> Finding:
    counted = ", ".join(f"{count.split.name} {count.listed}" for count in counts)
    faults = [f"{count.split.name}: {count.fault}" for count in counts if count.fault]
    if faults:
        return warning("data", f"{root}: {faults[0]}", f"complete the set; then python tools/data.py check {root}")
    if toy_classes(root):
        return ok("data", f"{root}: a toy set: {counted}")
    partial = [count for count in counts if not count.is_complete]
    if partial:
        less = f"{partial[0].split.name} was published with {partial[0].split.count} images"
        return warning("data", f"{root}: {counted}", f"{less}: results on it are not comparable")
    return ok("data", f"{root}: {counted}")
