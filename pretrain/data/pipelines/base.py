"""What the data set and the loader ask of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch.utils.data import get_worker_info

from pretrain.data.augment import View


class Content(NamedTuple):
    """What travels from a loader process to the training device.

    Attributes:
        views: uint8 (N, 3, size, size) each.
        draws: (N, 12) float32 a view (`packed`), where they are needed on the device.
    """

    views: tuple[torch.Tensor, ...]
    draws: tuple[torch.Tensor, ...] | None = None


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
