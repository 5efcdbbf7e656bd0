"""A task: its classes, its training images and its test images, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.coco import read_coco
from transfer.tasks.datasets import ROOT_VARIABLE, DatasetDict, Split, find_split
from transfer.tasks.reading import Reading
from transfer.tasks.voc import read_voc


@dataclass(frozen=True)
class Dataset:
    """The content of one split.

    Attributes:
        split: the split; its paths are absolute or relative to the working folder.
        records: its images.
        classes: class names, in the order of the labels.
        category_ids: COCO: label → category id of the file; empty for VOC.
        adjustments: what was read otherwise than it is written, as text; see `transfer.tasks.reading`.
    """

    split: Split
    records: list[DatasetDict]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    adjustments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Training and test data of a fine-tuning task.

    Attributes:
        name: `voc07`, …, or a user's own.
        train: training splits, in the order they are concatenated.
        test: the split that results are measured on.
    """

    name: str
    train: tuple[Dataset, ...]
    test: Dataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.test.classes

    @property
    def layout(self) -> str:
        """`voc` or `coco`: the layout of the annotations, which also decides the metric."""
        return self.test.split.layout


def load_task(
    name: str,
    train: Sequence[str],
    test: str,
    root: Path,
    *,
    classes: Sequence[str] = (),
    own_splits: Mapping[str, Any] | None = None,
    check_counts: bool = True,
    strict: bool = False,
) -> Task:
    """Read and check a task's annotations.

    Args:
        name: the task's name.
        train: names of the training splits.
        test: name of the test split.
        root: the data root.
        classes: the class names; empty: those of the benchmark with this layout.
        own_splits: TRANSFER.SPLITS.
        check_counts: compare the number of images of each published split with the published number.
        strict: TRANSFER.STRICT.

    Raises:
        UserError: anything is missing, broken or unknown, or the number of images differs; names file and object.
    """
    splits = [find_split(split, root, own_splits or {}, strict) for split in (*train, test)]
    layouts = {split.layout for split in splits}
    if len(layouts) > 1:
        raise UserError(f"DATASETS: the splits of {name} mix the layouts {' and '.join(sorted(layouts))}; use one")
    names = _class_list(classes, splits[-1].layout)
    *training, testing = [read_split(split, names, check_counts) for split in splits]
    for dataset in training:
        if dataset.classes != testing.classes:
            raise UserError(
                f"{dataset.split.annotations}: the category ids order the classes differently from "
                f"{testing.split.annotations}"
            )
    return Task(name, tuple(training), testing)


def read_split(
    split: Split, classes: Sequence[str], check_count: bool = True, faults: list[str] | None = None
) -> Dataset:
    """Read and check one split.

    Args:
        split: the split, its paths below the root.
        classes: the class names.
        check_count: compare the number of images with the published number.
        faults: where given, errors of single images and objects are collected here instead of raised.

    Raises:
        UserError: as `load_task`.
    """
    if not split.folder.is_dir():
        raise UserError(
            f"{split.folder} is not a folder, but {split.name} should be there; "
            f"set TRANSFER.DATA_ROOT or {ROOT_VARIABLE}"
        )
    reading = Reading(split.strict, faults)
    if split.layout == "coco":
        records, categories = read_coco(split, classes, reading)
        dataset = Dataset(split, records, categories.names, tuple(categories.labels), reading.adjustments())
    else:
        records = read_voc(split, classes, reading)
        dataset = Dataset(split, records, tuple(classes), adjustments=reading.adjustments())
    listed = len(dataset.records)
    if check_count and not faults and split.count is not None and listed != split.count:
        found = f"{split.name} has {listed} images, published with {split.count}"
        raise UserError(
            f"{split.folder}: {found}; complete the set, or set TRANSFER.CHECK_COUNTS False (the result is "
            "then not comparable)"
        )
    return dataset


def _class_list(classes: Sequence[str], layout: str) -> tuple[str, ...]:
    names = tuple(classes) or BENCHMARK[layout]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise UserError(f"TRANSFER.CLASSES: {twice!r} is listed twice")
    return names
