"""Small worlds for the tests of pre-training: a folder of images and a model that trains in milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_transfer.console import call_main
from tools.pretrain import main

SMALL = """
DATA: {SIZE: 32, WORKERS: 0}
MODEL: {ARCH: resnet18, PROJ_HIDDEN: 32, DIM: 16, PRED_DIM: 8}
SOLVER: {BATCH_SIZE: 4, BASE_LR: 3.2, EPOCHS: 2}
LOG: {PERIOD: 1, TENSORBOARD: False}
"""


def draw_images(folder: Path, count: int, seed: int = 0, side: int = 40) -> Path:
    """`count` smooth random images in two class folders below `folder/train`."""
    rng = np.random.RandomState(seed)
    for number in range(count):
        pixels = rng.randint(0, 256, (5, 5, 3), dtype=np.uint8)
        file = folder / "train" / f"class{number % 2}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((side + number % 7, side), Image.Resampling.BICUBIC).save(file)
    return folder


@pytest.fixture
def draw() -> Callable[[Path, int], Path]:
    """`draw(folder, count)` draws that many images."""
    return draw_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 images."""
    return draw_images(tmp_path_factory.mktemp("images"), 14)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small recipe: 3 steps an epoch on `images`, 2 epochs."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture
def pretrain(config: Path, images: Path) -> Callable[..., int]:
    """`pretrain(output, *words)`: the command line on the small recipe and images; returns its exit code."""

    def command(output: Path, *words: str) -> int:
        return call_main(
            main, ["--config-file", str(config), "--output", str(output), "DATA.ROOT", str(images), *words]
        )

    return command
