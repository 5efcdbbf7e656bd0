"""Read every annotation and every image of a data set, with the checks of a fine-tuning run before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import load_with_base
from common.errors import UserError
from transfer.doctor.data_roots import split_exists
from transfer.tasks.classes import BENCHMARK, TOY_RECORD, toy_classes
from transfer.tasks.datasets import PUBLISHED, Split, data_root, find_split
from transfer.tasks.images import abbreviate_faults, image_faults
from transfer.tasks.task import Dataset, read_split

SHOWN = 20
"""Number of faults of one split that are printed; the others are counted."""


@dataclass(frozen=True)
class SplitToCheck:
    """A split, and how to check it.

    Attributes:
        split: the split, its paths below the root.
        classes: the valid class names.
        counts: compare the number of images with the published number.
    """

    split: Split
    classes: tuple[str, ...]
    counts: bool = False


@dataclass(frozen=True)
class CheckedSplit:
    """The result of reading one split.

    Attributes:
        split: the split.
        images, objects, difficult, crowds, empty: counts; `empty` counts images without objects.
        faults: one line per fault.
        adjustments: what was read otherwise than it is written.
    """

    split: Split
    images: int = 0
    objects: int = 0
    difficult: int = 0
    crowds: int = 0
    empty: int = 0
    faults: tuple[str, ...] = ()
    adjustments: tuple[str, ...] = ()


def splits_below(root: Path, counts: bool = False) -> list[SplitToCheck]:
    """Find the benchmark splits below a root, which may be a whole toy set.

    Raises:
        UserError: it has none.
    """
    root = _detection_root(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that holds VOC2007/, VOC2012/ or coco/")
    found = [split for split in (split.under(root) for split in PUBLISHED.values()) if split_exists(split)]
    if not found:
        wanted = "VOC2007/ImageSets/Main/*.txt, VOC2012/ImageSets/Main/*.txt, coco/annotations/instances_*2017.json"
        raise UserError(f"{root} holds no benchmark; looked for {wanted}")
    toy = toy_classes(root)
    return [SplitToCheck(split, toy or BENCHMARK[split.layout], counts) for split in found]


def splits_of(config_file: Path, root: Path | None, counts: bool = False) -> list[SplitToCheck]:
    """Find the splits that a task's config file names, the user's own ones too, without importing Detectron2.

    Args:
        config_file: config file of the task.
        root: the data root; None: from the file, DETECTRON2_DATASETS or the default.
        counts: see `SplitToCheck`; published counts are compared anyway unless the file sets CHECK_COUNTS False.

    Raises:
        UserError: the file is not valid, or names no split or an unknown one.
    """
    content = load_with_base(config_file)
    own, sets = _section(content, "TRANSFER", config_file), _section(content, "DATASETS", config_file)
    names = [*(sets.get("TRAIN") or ()), *(sets.get("TEST") or ())]
    if not names:
        raise UserError(f"{config_file}: DATASETS.TRAIN and DATASETS.TEST name no split")
    base = data_root(str(own.get("DATA_ROOT") or "")) if root is None else _detection_root(root)
    splits = [find_split(name, base, own.get("SPLITS") or {}, bool(own.get("STRICT"))) for name in dict.fromkeys(names)]
    compare_counts = counts or own.get("CHECK_COUNTS", True)
    classes = tuple(own.get("CLASSES") or ()) or toy_classes(base)
    return [SplitToCheck(split, classes or BENCHMARK[split.layout], compare_counts) for split in splits]


def check_split(item: SplitToCheck, decode: bool = False, workers: int | None = None) -> CheckedSplit:
    """Read one split and check its images; all faults are collected.

    Args:
        item: the split.
        decode, workers: see `image_faults`.
    """
    faults: list[str] = []
    try:
        dataset = read_split(item.split, item.classes, item.counts, faults)
    except UserError as error:
        return CheckedSplit(item.split, faults=(*faults, str(error)))
    faults += image_faults(dataset.records, decode, workers)
    return _counted(dataset, tuple(faults))


def _detection_root(root: Path) -> Path:
    """`root`, or its `detection` folder where `root` is a whole toy set."""
    return root / "detection" if (root / TOY_RECORD).is_file() else root


def _section(content: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{file}: {key} must hold keys and values")
    return section


def _counted(dataset: Dataset, faults: tuple[str, ...]) -> CheckedSplit:
    objects = [annotation for record in dataset.records for annotation in record.annotations]
    return CheckedSplit(
        dataset.split,
        images=len(dataset.records),
        objects=len(objects),
        difficult=sum(annotation.difficult for annotation in objects),
        crowds=sum(annotation.crowd for annotation in objects),
        empty=sum(not record.annotations for record in dataset.records),
        faults=faults,
        adjustments=dataset.adjustments,
    )


def render_split(checked: CheckedSplit) -> list[str]:
    """Report of a split: one line, or one line per fault."""
    name = f"{checked.split.name:<20}"
    if checked.faults:
        return [f"broken   {name}  {fault}" for fault in abbreviate_faults(checked.faults, SHOWN)]
    special = [f"{n} {what}" for n, what in ((checked.difficult, "difficult"), (checked.crowds, "crowd")) if n]
    objects = f"{checked.objects} objects" + (f" ({', '.join(special)})" if special else "")
    empty = f", {checked.empty} image(s) without any" if checked.empty else ""
    same = checked.split.count is None or checked.images == checked.split.count
    other = "" if same else f"; published with {checked.split.count} images"
    return [
        f"ok       {name}  {'; '.join((f'{checked.images} images, {objects}{empty}{other}', *checked.adjustments))}"
    ]


def summary(found: Sequence[CheckedSplit]) -> str:
    """The last line of the report."""
    broken = [checked for checked in found if checked.faults]
    if not broken:
        return f"{len(found)} splits, nothing wrong"
    return f"{len(found)} splits, {len(broken)} broken, {sum(len(checked.faults) for checked in broken)} faults"
