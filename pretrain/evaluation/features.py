"""Pooled features of images, computed by a frozen encoder and shared out over the processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet

from pretrain.evaluation.backbone import PixelNormalization
from pretrain.evaluation.data import FixedView, LabelledSet, Views, load_pictures

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's format for a precision other than fp32."""

CHUNK = 1024
"""Images a chunk: what is given to one process or another. Fixed, so that results do not depend on their number."""

BATCH = 256
"""Images a forward pass; CHUNK is a multiple of it."""


@contextlib.contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """The encoder in evaluation mode while the block runs; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def feature_width(encoder: ResNet) -> int:
    """The width of an encoder's pooled feature: that of its last batch normalisation."""
    return int([module for module in encoder.layer4.modules() if isinstance(module, _BatchNorm)][-1].num_features)


@dataclass(frozen=True)
class Extractor:
    """From uint8 images to features.

    Attributes:
        encoder: on its device, in evaluation mode while it is used (`frozen`); nothing of it is changed.
        width: of its feature.
        preprocess: from uint8 RGB to its input.
        precision: of its forward pass: fp32, bf16 or fp16.
        channels_last: the layout of its input.
    """

    encoder: nn.Module
    width: int
    preprocess: Callable[[torch.Tensor], torch.Tensor] | PixelNormalization
    precision: str = "fp32"
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, width), float32 or wider on the encoder's device, of uint8 images (N, 3, H, W) anywhere."""
        if not len(images):
            return next(self.encoder.parameters()).new_empty(0, self.width)
        half = HALF.get(self.precision)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = self.preprocess(images.to(self.device, non_blocking=True)).contiguous(memory_format=layout)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            features = self.encoder(pixels)
        return features if features.dtype is torch.float64 else features.float()


def chunk_count(images: int) -> int:
    """How many chunks so many images make."""
    return -(-images // CHUNK)


def numbers_of(chunk: int, images: int) -> range:
    """The numbers of the images in a chunk."""
    return range(chunk * CHUNK, min(images, (chunk + 1) * CHUNK))


def own_chunks(images: int) -> range:
    """The chunks that are this process's to compute."""
    return range(comm.get_rank(), chunk_count(images), comm.get_world_size())


def own_image_count(images: LabelledSet) -> int:
    """How many images of a set are this process's to compute."""
    return sum(len(numbers_of(chunk, len(images))) for chunk in own_chunks(len(images)))


def extract_chunks(
    extractor: Extractor, images: LabelledSet, view: FixedView, workers: int, step: Callable[[int], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """This process's chunks of a set, as (chunk, features).

    Args:
        extractor: its encoder is in evaluation mode.
        images: the set.
        view: how each image is looked at.
        workers: loader processes.
        step: told of so many more images done by this process.

    Raises:
        UserError: a file cannot be read; names it.
    """
    batches = [
        [(0, number) for number in numbers_of(chunk, len(images))[start : start + BATCH]]
        for chunk in own_chunks(len(images))
        for start in range(0, CHUNK, BATCH)
    ]
    batches = [batch for batch in batches if batch]
    pictures = load_pictures(Views(images.index, view), batches, workers, extractor.device.type == "cuda")
    for chunk in own_chunks(len(images)):
        count, parts = len(numbers_of(chunk, len(images))), []
        for _ in range(0, count, BATCH):
            parts.append(extractor(next(pictures).images))
            step(len(parts[-1]))
        yield chunk, torch.cat(parts)
