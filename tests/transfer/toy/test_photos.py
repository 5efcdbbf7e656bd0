"""The photos: an ImageFolder of classes that differ by more than their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer.toy.drawing import generator
from transfer.toy.photos import PHOTO_CLASSES, draw


def test_torchvision_reads_them_as_an_image_folder(world: Path) -> None:
    from torchvision.datasets import ImageFolder

    train, val = (ImageFolder(str(world / "photos" / split)) for split in ("train", "val"))
    assert train.classes == list(PHOTO_CLASSES)
    assert [train.targets.count(label) for label in range(len(PHOTO_CLASSES))] == [2] * len(PHOTO_CLASSES)
    assert val.class_to_idx == train.class_to_idx


def test_photos_are_colour_images_of_several_aspect_ratios(world: Path) -> None:
    files = sorted((world / "photos" / "train").rglob("*.jpg"))
    images = [Image.open(file) for file in files]
    assert {image.mode for image in images} == {"RGB"}
    assert all(96 <= min(image.size) <= 160 and max(image.size) <= 300 for image in images)
    assert len({image.size for image in images}) > 8


@pytest.mark.parametrize("name", PHOTO_CLASSES)
def test_two_photos_of_a_class_differ(name: str) -> None:
    first, second = (
        np.asarray(draw(generator(0, "x", index), name).resize((64, 64)), dtype=float) for index in range(2)
    )
    assert np.abs(first - second).mean() > 10
    assert first.std() > 10
