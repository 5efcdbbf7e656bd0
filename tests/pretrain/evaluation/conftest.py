"""A small labelled set, a random backbone, and the command line on both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import preprocessing_block
from pretrain.engine.result import write_backbone
from pretrain.models.encoder import backbone_tensors, build_encoder
from ssl_transfer.console import call_main
from tools.evaluate import main

CLASSES = ("blue", "green", "red")
ORIGIN = {"method": "simsiam", "recipe": "simsiam_r50_b256_100ep_base", "epochs": 100, "toy": False}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy colours, 32×32: 10 training and 4 test images each."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.RandomState(0)
    for split, count in (("train", 10), ("val", 4)):
        for channel, name in zip((2, 1, 0), CLASSES, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.randint(0, 130, (32, 32, 3))
                pixels[..., channel] += 110
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised ResNet-18 as a backbone file."""
    state = torch.get_rng_state()
    torch.manual_seed(1)
    encoder, _ = build_encoder("resnet18", zero_init_residual=False)
    torch.set_rng_state(state)
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    write_backbone(file, backbone_tensors(encoder), "resnet18", preprocessing_block(), ORIGIN)
    return file


SMALL = ("DATA.SIZE", "32", "DATA.RESIZE", "0", "DATA.WORKERS", "0")
SMALL_LINEAR = (*SMALL, "LINEAR.BATCH_SIZE", "8", "LINEAR.EPOCHS", "3", "LINEAR.BASE_LR", "32")


@pytest.fixture
def evaluate(weights: Path, labelled: Path) -> Callable[..., int]:
    """`evaluate(kind, *words)`: runs the command line on the small set; returns its exit code.

    A linear evaluation has 4 steps an epoch, the last of 6 images.
    """

    def command(kind: str, *words: str) -> int:
        small = SMALL_LINEAR if kind == "linear" else (*SMALL, "KNN.K", "5")
        return call_main(main, [kind, "--weights", str(weights), "--data", str(labelled), *small, *words])

    return command
