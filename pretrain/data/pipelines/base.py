"""What the data set and the loader ask of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch.utils.data import get_worker_info

from common.errors import UserError
from pretrain.data.augment import View


class Files(NamedTuple):
    """Encoded images, and the crops to be taken of them.

    Attributes:
        content: uint8, one file after another.
        lengths: (N,) int64, each one's bytes.
        boxes: a view each, (N, 4) int32: the crop's top, left, height and width in pixels.
        size: height and width of a view in pixels.
    """

    content: torch.Tensor
    lengths: torch.Tensor
    boxes: tuple[torch.Tensor, ...]
    size: int


class Content(NamedTuple):
    """What travels from a loader process to the training device.

    Attributes:
        views: uint8 (N, 3, size, size) each; none where files travel.
        draws: (N, 12) float32 a view (`packed`), where they are needed on the device.
        files: the images, where a loader process does not decode them.
    """

    views: tuple[torch.Tensor, ...] = ()
    draws: tuple[torch.Tensor, ...] | None = None
    files: Files | None = None


class Refused(UserError):
    """A batch whose images the device cannot decode.

    Args:
        what: one line.
        instead: the pipeline that brings the same images so that they can be, whatever is wrong with them.
    """

    def __init__(self, what: str, instead: Pipeline) -> None:
        super().__init__(what)
        self.instead = instead


class Room(Protocol):
    """Where a loader process puts a batch together, sample by sample."""

    def add(self, pixels: Any, views: Sequence[View]) -> None:
        """Put in the next sample: the image and what was drawn for each of its views."""

    def content(self) -> Content:
        """The batch, once every sample is in."""


class Pipeline(Protocol):
    """A way from a file to views: in a loader process up to its room's `content`, on the training device from there."""

    def pixels(self, image: Image.Image, content: bytes) -> Any:
        """RGB pixels, in whatever form the room takes them, of an opened image or of its file's content."""

    def size(self, pixels: Any) -> tuple[int, int]:
        """Width and height."""

    def room(self, count: int, views: int, size: int) -> Room:
        """An empty room for `count` samples of so many views, `size` pixels square."""

    def finish(self, content: Content, device: torch.device) -> list[torch.Tensor]:
        """What is left to do on the training device.

        Returns:
            A view each: normalised float32 (N, 3, size, size).

        Raises:
            Refused: an image cannot be decoded there.
        """


def shared_bytes(count: int) -> torch.Tensor:
    """Uninitialised uint8 (count,).

    In a loader process it lies in shared memory, so that it need not be copied there on its way to the trainer (as in
    torch's own `default_collate`).
    """
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(storage)
