"""What pipelines share whose loader processes make the views: they are written where the batch lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pretrain.data.augment import View
from pretrain.data.pipelines.base import Content, shared_bytes
from pretrain.data.pipelines.packed import pack


class Rendering(ABC):
    """A `Pipeline` that renders each view in a loader process.

    Attributes:
        needs_draws: whether `finish_view` reads what was drawn.
    """

    needs_draws = False

    @abstractmethod
    def render(self, pixels: Any, view: View, out: np.ndarray) -> None:
        """Write one view into `out`, uint8 (size, size, 3)."""

    @abstractmethod
    def finish_view(self, views: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """What is left to do on the training device.

        Args:
            views: uint8 (N, 3, size, size).
            draws: (N, 12) float32 on the CPU (`packed`), where they are needed.

        Returns:
            Normalised float32 of the same shape.
        """

    def room(self, count: int, views: int, size: int) -> Pages:
        """A page a view."""
        return Pages(self, count, views, size)

    def finish(self, content: Content, device: torch.device) -> list[torch.Tensor]:
        """Each view by itself."""
        draws = content.draws or [None] * len(content.views)
        pairs = zip(content.views, draws, strict=True)
        return [self.finish_view(view.to(device, non_blocking=True), drawn) for view, drawn in pairs]


class Pages:
    """A `Room`: a batch of views each, and what was drawn."""

    def __init__(self, pipeline: Rendering, count: int, views: int, size: int) -> None:
        self.pipeline = pipeline
        self.stores = [shared_bytes(count * size * size * 3).view(count, size, size, 3) for _ in range(views)]
        self.pages = [store.numpy() for store in self.stores]
        self.drawn: list[Sequence[View]] = []

    def add(self, pixels: Any, views: Sequence[View]) -> None:
        """Render the views of the next sample: nothing is stacked or copied later."""
        for page, view in zip(self.pages, views, strict=True):
            self.pipeline.render(pixels, view, page[len(self.drawn)])
        self.drawn.append(views)

    def content(self) -> Content:
        """The views, and the draws where the pipeline needs them."""
        views = tuple(store.permute(0, 3, 1, 2) for store in self.stores)
        if not self.pipeline.needs_draws:
            return Content(views)
        return Content(views, tuple(torch.from_numpy(pack(drawn)) for drawn in zip(*self.drawn, strict=True)))
