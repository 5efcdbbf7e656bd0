"""A task ready to run: its classes, its training images and its test images, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.coco import read_coco
from transfer.tasks.records import Record
from transfer.tasks.splits import ROOT_VARIABLE, Split, find_split
from transfer.tasks.voc import read_voc


@dataclass(frozen=True)
class Dataset:
    """One split that was read.

    Attributes:
        split: which one, its paths absolute or relative to the working folder.
        records: its images.
        classes: names, in the order of the records' labels.
        category_ids: COCO: label → category id of the file; empty for VOC.
    """

    split: Split
    records: list[Record]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """What is learned and measured.

    Attributes:
        name: `voc07`, …, or a user's own.
        train: training splits, in the order they are concatenated.
        test: the split results are measured on.
    """

    name: str
    train: tuple[Dataset, ...]
    test: Dataset

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.test.classes

    @property
    def layout(self) -> str:
        """`voc` or `coco`: how annotations lie on disk, and whose metric is computed."""
        return self.test.split.layout


def load_task(
    name: str,
    train: Sequence[str],
    test: str,
    root: Path,
    classes: Sequence[str] = (),
    own_splits: Mapping[str, Any] | None = None,
    check_counts: bool = True,
) -> Task:
    """Read and check a task's annotations.

    Args:
        name: the task's name.
        train: names of the training splits.
        test: name of the test split.
        root: the data root.
        classes: the class names; empty: those of the benchmark whose layout the splits have.
        own_splits: TRANSFER.SPLITS.
        check_counts: hold each published split against the number of images it was published with.

    Raises:
        UserError: anything is missing, broken, unknown, or not as many as published; one line naming file and object.
    """
    splits = [find_split(split, root, own_splits or {}) for split in (*train, test)]
    layouts = {split.layout for split in splits}
    if len(layouts) > 1:
        raise UserError(f"DATASETS: the splits of {name} mix the layouts {' and '.join(sorted(layouts))}; use one")
    names = _class_list(classes, splits[-1].layout)
    *training, testing = [read(split, names, check_counts) for split in splits]
    for dataset in training:
        if dataset.classes != testing.classes:
            raise UserError(
                f"{dataset.split.annotations}: the category ids order the classes otherwise than "
                f"{testing.split.annotations} does"
            )
    return Task(name, tuple(training), testing)


def read(split: Split, classes: Sequence[str], check_count: bool = True, faults: list[str] | None = None) -> Dataset:
    """Read and check one split.

    Args:
        split: which one, its paths below the root.
        classes: the class names.
        check_count: hold a published split against the number of images it was published with.
        faults: where given, what is wrong with single images and objects is collected here instead of raised.

    Raises:
        UserError: as `load_task`.
    """
    if not split.folder.is_dir():
        raise UserError(
            f"{split.folder} is not a folder, but {split.name} should lie there; "
            f"set TRANSFER.DATA_ROOT or {ROOT_VARIABLE}"
        )
    if split.layout == "coco":
        records, categories = read_coco(split, classes, faults)
        dataset = Dataset(split, records, categories.names, tuple(categories.labels))
    else:
        dataset = Dataset(split, read_voc(split, classes, faults), tuple(classes))
    listed = len(dataset.records)
    if check_count and not faults and split.count is not None and listed != split.count:
        found = f"{split.name} has {listed} images, published with {split.count}"
        raise UserError(
            f"{split.folder}: {found}; complete the set, or say TRANSFER.CHECK_COUNTS False (the result then "
            "compares with nothing)"
        )
    return dataset


def _class_list(classes: Sequence[str], layout: str) -> tuple[str, ...]:
    names = tuple(classes) or BENCHMARK[layout]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise UserError(f"TRANSFER.CLASSES: {twice!r} is listed twice")
    return names
