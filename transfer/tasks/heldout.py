"""Hold out a part of the training images to select a learning rate, so that the test split selects nothing.

The part is taken from the first training split: the images with the smallest SHA-256 of `seed/image id`. It depends on
the ids and this seed alone, not on the order of a list or on a trial's seed, and all candidates of a search share it.
Held-out images are removed from every training split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import write_json, write_text
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.task import Task, ground_truth

FILE = "heldout"
"""Stem of the file in the trial's folder that lists the part in its layout: `.txt` or `.json`."""


@dataclass(frozen=True)
class HeldOut:
    """A task whose test split is a part of its training images.

    Attributes:
        task: trains on the remaining images, measures on the held-out part.
        source: the split that the part was taken from.
        fraction, seed: size of the part, and seed of its selection.
    """

    task: Task
    source: Split
    fraction: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """The entry of a result; the digest covers the ids in ascending order, one per line."""
        ids = sorted(str(record.image_id) for record in self.task.test.records)
        return {
            "split": self.source.name,
            "fraction": self.fraction,
            "seed": self.seed,
            "images": len(ids),
            "sha256": hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest(),
        }

    def write(self) -> None:
        """Write the part's list (VOC) or annotation file (COCO), which the reference evaluators read."""
        part = self.task.test
        if part.split.layout == "voc":
            file = part.split.folder / f"{part.split.image_set}.txt"
            write_text(file, "".join(f"{record.image_id}\n" for record in part.records))
            return
        assert part.split.annotations is not None
        write_json(part.split.annotations, ground_truth(part))


def hold_out(task: Task, fraction: float, seed: int, folder: Path) -> HeldOut:
    """Take the part from a task's first training split.

    Args:
        task: the task of a reported trial.
        fraction: share of the first training split, between 0 and 1; at least one image is held out, and one remains.
        seed: seed of the selection.
        folder: where `HeldOut.write` writes the list.

    Raises:
        UserError: the split has a single image.
    """
    first, *others = task.train
    if len(first.records) < 2:
        raise UserError(f"{first.split.name} has a single image; nothing can be held out of it: --select-on test")
    count = min(max(round(fraction * len(first.records)), 1), len(first.records) - 1)
    chosen = sorted(first.records, key=lambda record: _rank(seed, record))[:count]
    held = {record.image_id for record in chosen}
    files = {record.file for record in chosen}
    part = [record for record in first.records if record.image_id in held]
    train = tuple(
        replace(dataset, records=[record for record in dataset.records if record.file not in files])
        for dataset in (first, *others)
    )
    split = _split(first.split, folder.absolute())
    return HeldOut(Task(task.name, train, replace(first, split=split, records=part)), first.split, fraction, seed)


def held_out_name(split: str) -> str:
    return f"{split}:{FILE}"


def _rank(seed: int, record: DatasetDict) -> str:
    return hashlib.sha256(f"{seed}/{record.image_id}".encode()).hexdigest()


def _split(source: Split, folder: Path) -> Split:
    """The part as a split: its list has an absolute path, so that the folder of the images stays the source's."""
    name = held_out_name(source.name)
    if source.layout == "coco":
        return replace(source, name=name, annotations=folder / f"{FILE}.json", count=None)
    return replace(source, name=name, image_set=str(folder / FILE), count=None)
