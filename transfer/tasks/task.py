"""A task: its classes, its training images and its test images, all of them checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_transfer.config import ValueSources, coerce
from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import read_json, write_json
from ssl_transfer.formats.defaults import default_values
from transfer.tasks.classes import BENCHMARK, toy_classes
from transfer.tasks.coco import read_coco
from transfer.tasks.datasets import PUBLISHED, ROOT_VARIABLE, DatasetDict, Split, data_root, find_split
from transfer.tasks.images import image_faults
from transfer.tasks.reading import IMAGE_ENDINGS, Reading, one_line
from transfer.tasks.voc import read_voc

OWN_SPLITS = "TRANSFER.SPLITS"
CACHED_FROM = 1.0
"""Seconds of reading from which its result is cached."""
READING_VERSION = 1
"""Increased where reading refuses something else than before: results of earlier readings are not used then."""
READ = (
    *(f"TRANSFER.{key}" for key in ("TASK", "DATA_ROOT", "CLASSES", "STRICT", "CHECK_COUNTS")),
    *("DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "MODEL.MASK_ON"),
    *(f"INPUT.{key}" for key in ("MASK_FORMAT", "MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")),
)
"""The config keys that decide how a task's annotations are read, besides its own splits."""


@dataclass(frozen=True)
class Dataset:
    """The content of one split.

    Attributes:
        split: the split; its paths are absolute or relative to the working folder.
        records: its images.
        classes: class names, in the order of the labels.
        category_ids: COCO: label → category id of the file; empty for VOC.
        adjustments: what was read otherwise than it is written, as text; see `transfer.tasks.reading`.
        missing: COCO: classes of the task that the file does not list.
    """

    split: Split
    records: list[DatasetDict]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    adjustments: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Number of images, and what was adjusted, in one line."""
        return "; ".join((f"{len(self.records)} images", *self.adjustments))


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


@dataclass(frozen=True)
class TaskSettings:
    """What a resolved config says of a task's data.

    Attributes:
        name: TRANSFER.TASK.
        splits: DATASETS.TRAIN, then DATASETS.TEST, below the data root.
        classes: TRANSFER.CLASSES, or the benchmark's.
        check_counts: TRANSFER.CHECK_COUNTS.
        masks, polygons: whether masks are trained and measured, and whether as polygons.
        filter_empty: whether images without objects are left out of training.
        train_size, test_size: smallest length of an image's short side and greatest of its long side, after resizing.
    """

    name: str
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    check_counts: bool
    masks: bool
    polygons: bool
    filter_empty: bool
    train_size: tuple[int, int]
    test_size: tuple[int, int]

    @classmethod
    def of(
        cls, values: Mapping[str, Any], root: Path | None = None, where: str | ValueSources = "config"
    ) -> TaskSettings:
        """From a config's dotted keys; those that are missing have their defaults.

        Args:
            values: `{A.B.C: value}`.
            root: the data root; None: TRANSFER.DATA_ROOT, DETECTRON2_DATASETS or the default.
            where: what messages call the config, or where each value came from.

        Raises:
            UserError: a split is unknown or its entry wrong, layouts are mixed, a class is listed twice, or a value has
                another type.
        """
        usual = default_values("transfer")
        values = {**usual, **values}
        values |= {key: coerce(usual[key], values[key], key, where) for key in READ}
        own: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key.startswith(f"{OWN_SPLITS}."):
                name, _, leaf = key.removeprefix(f"{OWN_SPLITS}.").rpartition(".")
                own.setdefault(name, {})[leaf] = value
        name, root = values["TRANSFER.TASK"], root or data_root(values["TRANSFER.DATA_ROOT"])
        train, test = values["DATASETS.TRAIN"], values["DATASETS.TEST"]
        if not train or len(test) != 1:
            raise UserError("DATASETS.TRAIN must list at least one split and DATASETS.TEST exactly one")
        splits = _find_splits(name, (*train, *test), root, own, values["TRANSFER.STRICT"])
        return cls(
            name=name,
            splits=splits,
            classes=_class_list(values["TRANSFER.CLASSES"] or toy_classes(root), splits[-1].layout),
            check_counts=values["TRANSFER.CHECK_COUNTS"],
            masks=values["MODEL.MASK_ON"],
            polygons=values["INPUT.MASK_FORMAT"] == "polygon",
            filter_empty=values["DATALOADER.FILTER_EMPTY_ANNOTATIONS"],
            train_size=(min(values["INPUT.MIN_SIZE_TRAIN"]), values["INPUT.MAX_SIZE_TRAIN"]),
            test_size=(values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]),
        )


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
    splits = _find_splits(name, (*train, test), root, own_splits or {}, strict)
    names = _class_list(classes, splits[-1].layout)
    return join_splits(name, [read_split(split, names, check_counts) for split in splits])


def join_splits(name: str, datasets: Sequence[Dataset]) -> Task:
    """Make a task of its splits, the test split last; classes that are numbered differently are matched by name.

    Raises:
        UserError: a class is in none of the splits, or a split that is read strictly numbers the classes differently.
    """
    *training, testing = datasets
    for index, dataset in enumerate(training):
        if dataset.classes != testing.classes:
            differs = "the category ids order the classes differently from"
            if dataset.split.strict or testing.split.strict:
                raise UserError(f"{dataset.split.annotations}: {differs} {testing.split.annotations}")
            training[index] = _relabel(dataset, testing.classes)
    for label in testing.missing:
        if all(label in dataset.missing for dataset in training):
            known = [other for other in testing.classes if other not in testing.missing]
            raise UserError(f"TRANSFER.CLASSES: no split has a category {label!r}; {nearest(label, known)}")
    return Task(name, tuple(training), testing)


def _relabel(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    label_of = [classes.index(name) for name in dataset.classes]
    ids = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    records = [
        replace(record, annotations=tuple(replace(one, label=label_of[one.label]) for one in record.annotations))
        for record in dataset.records
    ]
    adjustments = (*dataset.adjustments, "classes numbered differently from the test split: matched by name")
    return replace(
        dataset,
        records=records,
        classes=classes,
        category_ids=tuple(ids[name] for name in classes),
        adjustments=adjustments,
    )


def training_faults(task: Task, settings: TaskSettings) -> Iterator[tuple[Dataset, str]]:
    """Yield one line for everything in checked splits that the detector cannot be trained or measured with."""
    names = ", ".join(dataset.split.name for dataset in task.train)
    if not any(_is_trained(record, settings) for dataset in task.train for record in dataset.records):
        crowds = any(record.annotations for dataset in task.train for record in dataset.records)
        why = "; all are iscrowd 1: write 0 for single objects" if crowds else ""
        yield task.train[0], f"{names}: no image has an object to train on{why}"
    for dataset, is_test in (*((one, False) for one in task.train), (task.test, True)):
        for record in dataset.records:
            if not (is_test or _is_trained(record, settings)):
                continue
            if _is_too_thin(record, *settings.test_size if is_test else settings.train_size):
                size = f"{record.width} × {record.height}"
                yield dataset, f"{record.file} is {size}, too thin to be resized; crop or remove it"
            if settings.masks:
                yield from ((dataset, fault) for fault in _mask_faults(record, is_test, settings.polygons))


def _is_trained(record: DatasetDict, settings: TaskSettings) -> bool:
    return not (settings.filter_empty and all(one.crowd for one in record.annotations))


def own_split_faults(settings: TaskSettings) -> list[str]:
    """What is wrong with the annotations of a user's own splits; images are not opened, published splits not read.

    What took long to read is cached until a file of the splits has another name, size or time of modification.
    """
    own = [split for split in settings.splits if split.name not in PUBLISHED]
    digest = hashlib.sha256(
        f"{READING_VERSION} {settings!r} {[_stamp(split) for split in own]}".encode(errors="replace")
    ).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    file = home / "ssl-detection-transfer" / "annotations" / f"{digest}.json"
    with contextlib.suppress(OSError, UserError):
        if file.is_file():
            return list(read_json(file))
    start = time.perf_counter()
    faults = _read_faults(settings, own)
    if time.perf_counter() - start > CACHED_FROM:
        with contextlib.suppress(OSError, UserError):  # no home, or a full one
            write_json(file, faults)
    return faults


def _stamp(split: Split) -> list[Any]:
    """Names of the files below a split's folder, and size and time of those that are no images."""
    files = [Path(folder) / name for folder, _, names in os.walk(split.folder) for name in sorted(names)]
    texts = [file for file in files if file.suffix.lower() not in IMAGE_ENDINGS]
    texts += [split.annotations] if split.annotations is not None else []
    with contextlib.suppress(OSError):
        return [*map(str, files), *((one.st_size, one.st_mtime_ns) for one in map(Path.stat, texts))]
    return [time.time()]


def _read_faults(settings: TaskSettings, own: Sequence[Split]) -> list[str]:
    faults: list[str] = []
    try:
        datasets = [read_split(split, settings.classes, settings.check_counts, faults) for split in own]
        if len(own) == len(settings.splits) and not faults:
            faults += [fault for _, fault in training_faults(join_splits(settings.name, datasets), settings)]
    except UserError as error:
        faults.append(str(error))
    return list(map(one_line, faults))


def _mask_faults(record: DatasetDict, is_test: bool, polygons: bool) -> Iterator[str]:
    for number, one in enumerate(record.annotations, start=1):
        where = f"{record.file}, object {number}"
        if one.segmentation is None and (is_test or not one.crowd):
            yield f"{where}: has no segmentation, which MODEL.MASK_ON needs; turn it off or add one"
        elif isinstance(one.segmentation, dict) and polygons and not (is_test or one.crowd):
            yield f"{where}: its segmentation is an RLE, not polygons; set INPUT.MASK_FORMAT bitmask"


def _is_too_thin(record: DatasetDict, shortest: int, longest: int) -> bool:
    """Whether Detectron2's ResizeShortestEdge would leave less than half a pixel."""
    short, long = sorted((record.width, record.height))
    return shortest * long > longest * short and longest * short < 0.5 * long and shortest > 0


def _find_splits(
    name: str, listed: Sequence[str], root: Path, own: Mapping[str, Any], strict: bool
) -> tuple[Split, ...]:
    splits = tuple(find_split(split, root, own, strict) for split in listed)
    layouts = {split.layout for split in splits}
    if len(layouts) > 1:
        raise UserError(f"DATASETS: the splits of {name} mix the layouts {' and '.join(sorted(layouts))}; use one")
    return splits


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
        ids = tuple(categories.labels)
        dataset = Dataset(split, records, categories.names, ids, reading.adjustments(), categories.missing)
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


def require_images(task: Task) -> None:
    """Check that every image of a task opens and has the size of its annotation; reads only headers.

    Raises:
        UserError: names the first image that does not.
    """
    for fault in image_faults(record for dataset in (*task.train, task.test) for record in dataset.records):
        raise UserError(fault)


def ground_truth(dataset: Dataset) -> dict[str, Any]:
    """The content of an annotation file that holds what was read, and nothing that the metric does not read."""
    records, folder = dataset.records, dataset.split.folder
    images = [
        {
            "id": record.image_id,
            "file_name": record.file.removeprefix(f"{folder}/"),
            "width": record.width,
            "height": record.height,
        }
        for record in records
    ]
    annotations = [
        {
            "id": one.number,
            "image_id": record.image_id,
            "category_id": dataset.category_ids[one.label],
            "bbox": list(one.box),
            "area": one.area,
            "iscrowd": int(one.crowd),
            **({} if one.segmentation is None else {"segmentation": _as_json(one.segmentation)}),
        }
        for record in records
        for one in record.annotations
    ]
    pairs = zip(dataset.category_ids, dataset.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _as_json(segmentation: Any) -> Any:
    if isinstance(segmentation, dict):
        return {"size": segmentation["size"], "counts": segmentation["counts"].decode()}
    return segmentation
