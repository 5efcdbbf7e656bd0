"""CIFAR-10's pickled batches as an ImageFolder; the pickles are read without running anything in them.

Source of the layout: Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html ("Python version").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_transfer.errors import UserError

SIDE = 32
META = "batches.meta"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
Photos = NDArray[np.uint8]


def write_image_folder(folder: Path) -> int:
    """Replace the unpacked batches in a folder by `train/CLASS/NUMBER.png` and `test/CLASS/NUMBER.png`.

    A photograph's number is its position in the batches, in their order.

    Args:
        folder: holds `data_batch_1` … `data_batch_5`, `test_batch` and `batches.meta`.

    Returns:
        Number of photographs.

    Raises:
        UserError: a batch is missing or is not one of CIFAR-10's.
    """
    from PIL import Image

    unpacked = [file for file in folder.iterdir() if file.is_file()]
    names = _class_names(folder / META)
    total = 0
    for split, batches in BATCHES.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
        count = 0
        for batch in batches:
            for photo, label in zip(*_read_batch(folder / batch, len(names)), strict=True):
                Image.fromarray(photo).save(folder / split / names[label] / f"{count:05d}.png")
                count += 1
        total += count
    for file in unpacked:
        file.unlink()
    return total


def _class_names(file: Path) -> list[str]:
    names = _read(file).get("label_names")
    listed = names if isinstance(names, list) else []
    plain = all(type(name) is str and name.isidentifier() for name in listed)
    if not listed or not plain or len({*listed}) < len(listed):
        raise UserError(f"{file.name} lists no class names; is it CIFAR-10's archive for Python?")
    return listed


def _read_batch(file: Path, classes: int) -> tuple[Photos, list[int]]:
    """Photographs (n, 32, 32, 3) in RGB and their labels, which are below `classes`."""
    content = _read(file)
    data, labels = getattr(content.get("data"), "value", None), content.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"{file.name} has no photographs of {SIDE} × {SIDE} pixels; is it CIFAR-10's archive?")
    listed = labels if isinstance(labels, list) else []
    valid = all(type(label) is int and 0 <= label < classes for label in listed)
    if not valid or len(listed) != len(data):
        raise UserError(f"{file.name} does not have a label of {classes} classes for each photograph")
    photos = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(photos), listed


def _read(file: Path) -> dict[Any, Any]:
    """The dict in a pickle of Python 2 or 3."""
    from transfer.weights.inert_pickle import InertUnpickler  # here: it needs torch

    try:
        content = InertUnpickler(file.read_bytes()).load()
    except FileNotFoundError as error:
        raise UserError(f"the archive holds no {file.name}; is it CIFAR-10's archive for Python?") from error
    except Exception as error:  # whatever a damaged stream leads to
        raise UserError(f"{file.name} is not a pickled batch ({' '.join(str(error).split()):.80})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file.name} holds no dict; is it CIFAR-10's archive for Python?")
    return content
