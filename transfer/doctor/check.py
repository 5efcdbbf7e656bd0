"""Read every annotation and every image of a data set, with the checks of a fine-tuning run before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_transfer.config import flatten, load_with_sources
from ssl_transfer.errors import UserError
from transfer.doctor.data_roots import split_exists
from transfer.tasks.classes import BENCHMARK, detection_root, toy_classes
from transfer.tasks.datasets import PUBLISHED, Split
from transfer.tasks.images import abbreviate_faults, image_faults
from transfer.tasks.reading import one_line
from transfer.tasks.task import Dataset, TaskSettings, join_splits, read_split, training_faults

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
    root = detection_root(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that holds VOC2007/, VOC2012/ or coco/")
    found = [split for split in (split.under(root) for split in PUBLISHED.values()) if split_exists(split)]
    if not found:
        wanted = "VOC2007/ImageSets/Main/*.txt, VOC2012/ImageSets/Main/*.txt, coco/annotations/instances_*2017.json"
        raise UserError(f"{root} holds no benchmark; looked for {wanted}")
    toy = toy_classes(root)
    return [SplitToCheck(split, toy or BENCHMARK[split.layout], counts) for split in found]


def task_of(config_file: Path, root: Path | None, counts: bool = False) -> TaskSettings:
    """What a task's config file says of its data, without importing Detectron2.

    Args:
        config_file: config file of the task.
        root: the data root; None: from the file, DETECTRON2_DATASETS or the default.
        counts: compare the number of images with the published number, whatever the file's CHECK_COUNTS says.

    Raises:
        UserError: the file is not valid, or names no split or an unknown one.
    """
    content, sources = load_with_sources(config_file)
    for key in ("TRANSFER", "DATASETS"):
        if not isinstance(content.get(key) or {}, Mapping):
            raise UserError(f"{config_file}: {key} must hold keys and values")
    try:
        settings = TaskSettings.of(flatten(content), None if root is None else detection_root(root), sources)
    except UserError as error:
        if str(config_file) in str(error):
            raise
        raise UserError(f"{config_file}: {error}") from error
    return replace(settings, check_counts=counts or settings.check_counts)


def check_task(settings: TaskSettings, decode: bool = False, workers: int | None = None) -> list[CheckedSplit]:
    """Read a task's splits and check them together, as training does before its first step; faults are collected.

    Args:
        settings: of the task.
        decode, workers: see `image_faults`.
    """
    faults: dict[str, list[str]] = {split.name: [] for split in settings.splits}
    found = {
        split.name: _read(split, settings.classes, settings.check_counts, faults[split.name])
        for split in settings.splits
    }
    datasets = [dataset for dataset in found.values() if dataset is not None]
    if not any(faults.values()):
        try:
            task = join_splits(settings.name, [datasets[list(found).index(split.name)] for split in settings.splits])
            found |= {dataset.split.name: dataset for dataset in (*task.train, task.test)}
            for dataset, fault in training_faults(task, settings):
                faults[dataset.split.name].append(fault)
        except UserError as error:
            faults[settings.splits[-1].name].append(str(error))
    return [
        _counted(split, found[split.name], faults[split.name], decode, workers)
        for split in {split.name: split for split in settings.splits}.values()
    ]


def check_split(item: SplitToCheck, decode: bool = False, workers: int | None = None) -> CheckedSplit:
    """Read one split and check its images; all faults are collected.

    Args:
        item: the split.
        decode, workers: see `image_faults`.
    """
    faults: list[str] = []
    return _counted(item.split, _read(item.split, item.classes, item.counts, faults), faults, decode, workers)


def _read(split: Split, classes: tuple[str, ...], counts: bool, faults: list[str]) -> Dataset | None:
    try:
        return read_split(split, classes, counts, faults)
    except UserError as error:
        faults.append(str(error))
        return None


def _counted(
    split: Split, dataset: Dataset | None, faults: list[str], decode: bool, workers: int | None
) -> CheckedSplit:
    if dataset is None:
        return CheckedSplit(split, faults=tuple(map(one_line, faults)))
    faults += image_faults(dataset.records, decode, workers)
    objects = [annotation for record in dataset.records for annotation in record.annotations]
    return CheckedSplit(
        split,
        images=len(dataset.records),
        objects=len(objects),
        difficult=sum(annotation.difficult for annotation in objects),
        crowds=sum(annotation.crowd for annotation in objects),
        empty=sum(not record.annotations for record in dataset.records),
        faults=tuple(map(one_line, faults)),
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
