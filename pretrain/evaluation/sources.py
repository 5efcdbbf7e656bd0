"""Where the classifier's features come from: the backbone's forward pass on fresh crops, or a file of fixed ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm

from common.training.collectives import run_on_main_process
from pretrain.evaluation.data import EpochPieces, FixedView, LabelledSet, RandomView, Views, load_pictures
from pretrain.evaluation.features import Extractor, extract_chunks, numbers_of

CACHE = "features_train.npy"

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""This process's part of each step: features (n, width) and their labels (n,), on the device; n may be 0."""


def live(extractor: Extractor, images: LabelledSet, view: RandomView, pieces: EpochPieces, workers: int) -> Batches:
    """The features of freshly drawn views: what the released code does."""
    pictures = load_pictures(Views(images.index, view), pieces, workers, extractor.device.type == "cuda")
    for batch in pictures:
        yield extractor(batch.images), images.labels[batch.numbers].to(extractor.device)


def cached(features: np.ndarray, images: LabelledSet, pieces: EpochPieces, device: torch.device) -> Batches:
    """The features that were computed once, in the same order."""
    for piece in pieces:
        numbers = np.array([number for _, number in piece], dtype=np.int64)
        rows = torch.from_numpy(np.asarray(features[numbers]))
        yield rows.to(device), images.labels[torch.from_numpy(numbers)].to(device)


def cache(
    folder: Path,
    extractor: Extractor,
    images: LabelledSet,
    view: FixedView,
    workers: int,
    step: Callable[[int], None],
) -> np.ndarray:
    """The training features of fixed views, (N, width) float32, in a file that all processes map.

    Every process computes its chunks and writes them where they belong; the file gets its name when all are done, so a
    file of that name is whole, and a run that is resumed uses it.
    """
    file = folder / CACHE
    if not run_on_main_process(file.exists):
        shape = (len(images), extractor.width)
        part = folder / run_on_main_process(lambda: _allocate(folder, shape))
        rows = np.lib.format.open_memmap(part, mode="r+")
        for chunk, features in extract_chunks(extractor, images, view, workers, step):
            numbers = numbers_of(chunk, len(images))
            rows[numbers.start : numbers.stop] = features.cpu().numpy()
        rows.flush()
        comm.synchronize()
        run_on_main_process(lambda: str(part.replace(file)))
    return np.load(file, mmap_mode="r")


def _allocate(folder: Path, shape: tuple[int, int]) -> str:
    name = f".{CACHE}.{secrets.token_hex(4)}.tmp"
    np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float32, shape=shape).flush()
    return name


@dataclass(frozen=True)
class Share:
    """This process's part of the test set: features and labels, on the device."""

    features: torch.Tensor
    labels: torch.Tensor


def test_share(
    extractor: Extractor, images: LabelledSet, view: FixedView, workers: int, step: Callable[[int], None]
) -> Share:
    """This process's chunks of the test set. Frozen features of fixed views never change: once is enough."""
    features, labels = [], []
    for chunk, part in extract_chunks(extractor, images, view, workers, step):
        numbers = numbers_of(chunk, len(images))
        features.append(part)
        labels.append(images.labels[numbers.start : numbers.stop])
    if not features:
        return Share(extractor(torch.empty(0, 3, 1, 1, dtype=torch.uint8)), torch.empty(0, dtype=torch.int64))
    return Share(torch.cat(features), torch.cat(labels).to(extractor.device))
