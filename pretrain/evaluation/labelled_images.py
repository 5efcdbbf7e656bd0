"""Labelled images: sets of files with classes, the views of each image, and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as F

from pretrain.data.augment import AugmentationConfig, apply_to_image, sample_params
from pretrain.data.decode import decode_rgb
from pretrain.data.index import ImageIndex, find_images
from pretrain.data.sampler import VIEWS, philox_generator
from ssl_transfer.errors import UserError
from ssl_transfer.training.distributed import ignore_stop_signals, start_workers


@dataclass(frozen=True)
class LabelledSet:
    """Images and their classes.

    Attributes:
        index: the images.
        labels: (N,) int64, each image's index into `classes`.
        classes: the names of the classes.
    """

    index: ImageIndex
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)


def labelled_sets(root: str, train: str, val: str, source: str) -> tuple[LabelledSet, LabelledSet]:
    """The two splits below `root`, whose first-level folders are the classes, as torchvision's ImageFolder has them.

    Args:
        root: the data set's folder.
        train, val: names of the splits' folders.
        source: the option or config key that names `root`, for messages.

    Raises:
        UserError: a split is missing or empty, an image lies in no class folder, there is only one class, or the
            splits' classes differ.
    """
    sets = [labelled_set(Path(root).expanduser(), split, source) for split in (train, val)]
    first, second = (set(found.classes) for found in sets)
    if first != second:
        odd = sorted(first ^ second)[0]
        there, lacks = (train, val) if odd in first else (val, train)
        raise UserError(f"{source} {root}: class {odd} is in {there}/ but not in {lacks}/ (or without images there)")
    if len(first) < 2:
        raise UserError(f"{source} {root}: {train}/ holds only one class ({sets[0].classes[0]}); two are needed")
    return sets[0], sets[1]


def labelled_set(root: Path, split: str, source: str) -> LabelledSet:
    """One split below `root`. Arguments and exceptions are those of `labelled_sets`."""
    folder = root / split
    if not root.is_dir():
        raise UserError(f"{source} {root} {'is not a folder' if root.exists() else 'does not exist'}")
    if not folder.is_dir():
        there = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:5]) or "no folders"
        raise UserError(f"{source} {root} has no folder {split}/ (it has: {there}); name the splits by TRAIN and VAL")
    try:
        index = find_images(str(folder))
    except UserError as error:
        raise UserError(str(error).replace("DATA.ROOT", source)) from error
    if index.labels is None or index.classes is None:
        loose = next(name for name in index.files if "/" not in name)
        raise UserError(f"{source} {folder}: {loose} lies in no class folder, so it has no label; move it into one")
    return LabelledSet(index, torch.from_numpy(np.asarray(index.labels)), index.classes)


@dataclass(frozen=True)
class FixedView:
    """The shorter side scaled to `resize`, then the central `size` × `size` pixels.

    With `resize` 0 the image is used as it is and must have that size.
    """

    size: int
    resize: int

    def __call__(self, image: Image.Image, _epoch: int, _index: int) -> torch.Tensor:
        """uint8 (3, size, size) of an RGB image."""
        if self.resize:
            image = F.center_crop(F.resize(image, [self.resize]), [self.size])
        elif image.size != (self.size, self.size):
            width, height = image.size
            raise UserError(f"it is {width}×{height}, not {self.size}×{self.size}; set RESIZE to scale images")
        return F.pil_to_tensor(image)


@dataclass(frozen=True)
class RandomView:
    """A random crop, possibly mirrored: a function of (seed, epoch, index).

    Args:
        augmentation: of the view; supervised training uses only crops and mirroring.
        seed: the run's seed.
    """

    augmentation: AugmentationConfig
    seed: int

    def __call__(self, image: Image.Image, epoch: int, index: int) -> torch.Tensor:
        """uint8 (3, size, size) of an RGB image."""
        rng = philox_generator(self.seed, epoch, index, VIEWS[0])
        params = sample_params(self.augmentation, *image.size, rng)
        return F.pil_to_tensor(apply_to_image(image, params, self.augmentation.size))


def crop_and_flip(size: int, crop_scale: tuple[float, float], flip_prob: float) -> AugmentationConfig:
    """RandomResizedCrop and RandomHorizontalFlip, nothing else."""
    return AugmentationConfig(
        size, crop_scale=crop_scale, jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, flip_prob=flip_prob
    )


class ImageBatch(NamedTuple):
    """A batch of the loader: uint8 (N, 3, H, W) images and their (N,) positions in the image index."""

    images: torch.Tensor
    indices: torch.Tensor


class ImageDataset(Dataset["tuple[torch.Tensor, int] | str"]):
    """One view of each image; a key is (epoch, index)."""

    def __init__(self, index: ImageIndex, view: FixedView | RandomView) -> None:
        self.index, self.view = index, view

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int] | str:
        """A view and the image's index; the error line if the file cannot be read, as in pre-training's dataset."""
        epoch, index = key
        path = self.index.path(index)
        try:
            image = decode_rgb(path)
        except UserError as error:
            return str(error)
        try:
            return self.view(image, epoch, index), index
        except UserError as error:
            return f"{path}: {error}"


def collate_images(samples: list[tuple[torch.Tensor, int] | str]) -> ImageBatch | str:
    """Stack samples. The error line of an unreadable file replaces the batch; no samples make an empty batch."""
    read: list[tuple[torch.Tensor, int]] = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        read.append(sample)
    if not read:
        return ImageBatch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return ImageBatch(torch.stack([view for view, _ in read]), torch.tensor([index for _, index in read]))


def load_images(
    dataset: ImageDataset,
    batches: Sequence[list[tuple[int, int]]] | Sampler[list[tuple[int, int]]],
    workers: int,
    pin: bool,
) -> Iterator[ImageBatch]:
    """The batches, decoded by `workers` processes. The run's random generators are not used.

    Raises:
        UserError: while iterating, for a file that cannot be read; names it.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),  # type: ignore[arg-type]
        collate_fn=collate_images,
        pin_memory=pin,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),
    )
    for batch in start_workers(loader):
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch
