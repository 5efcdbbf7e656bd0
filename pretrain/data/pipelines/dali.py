"""Files from the loader's processes; NVIDIA's DALI decodes and crops them on the training device, on a GPU or a CPU.

What follows the crop is `crops`'s, on the same device. Needs the extra `dali` (docs/guides/data.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pretrain.data.augment import View
from pretrain.data.decode import to_rgb
from pretrain.data.jpeg import is_plain
from pretrain.data.pipelines.base import Content, Files, Refused, shared_bytes
from pretrain.data.pipelines.dali_crops import DaliCrops
from pretrain.data.pipelines.device import augmented
from pretrain.data.pipelines.packed import pack
from pretrain.data.preprocessing import normalise


class Encoded(NamedTuple):
    """An image that is not decoded yet.

    Attributes:
        content: a file that DALI decodes as Pillow does.
        width, height: in pixels.
    """

    content: bytes
    width: int
    height: int


class Dali:
    """Reading and checking in a loader process, everything else where the training is.

    Args:
        trusting: whether a JPEG that looks whole is left to DALI; else Pillow decodes every image.
    """

    def __init__(self, trusting: bool = True) -> None:
        self.trusting = trusting
        self._crops: DaliCrops | None = None

    def __reduce__(self) -> tuple[type[Dali], tuple[bool]]:
        """What DALI has built stays in the training process."""
        return Dali, (self.trusting,)

    def pixels(self, image: Image.Image, content: bytes) -> Encoded:
        """The file itself where it is a plain, complete JPEG; else Pillow's pixels as an uncompressed PPM."""
        usual = image.format == "JPEG" and image.mode in ("RGB", "L") and image.info.get("adobe_transform", 1) == 1
        if not (self.trusting and usual and is_plain(content)):
            image = to_rgb(image)
            content = b"P6 %d %d 255\n" % image.size + image.tobytes()
        return Encoded(content, *image.size)

    def size(self, pixels: Encoded) -> tuple[int, int]:
        """Width and height."""
        return pixels.width, pixels.height

    def room(self, count: int, views: int, size: int) -> Parcel:
        """A parcel of files."""
        return Parcel(size)

    def finish(self, content: Content, device: torch.device) -> list[torch.Tensor]:
        """Decode, crop, then all else as drawn, and normalise."""
        assert content.files is not None and content.draws is not None
        if self._crops is None or not self._crops.serves(content.files, device):
            self._crops = DaliCrops(content.files, device)
        try:
            crops = self._crops.of(content.files)
        except RuntimeError as error:
            self._crops = None  # DALI builds no second batch after an error
            said = " ".join(str(error).split())[:500]
            said = f"DALI cannot crop a batch ({said}); DATA.PIPELINE crops does without it"
            raise Refused(said, instead=Dali(trusting=False)) from error
        return [normalise(augmented(crop, drawn)) for crop, drawn in zip(crops, content.draws, strict=True)]


class Parcel:
    """A `Room`: files as they are, and what was drawn."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.files: list[bytes] = []
        self.drawn: list[Sequence[View]] = []

    def add(self, pixels: Encoded, views: Sequence[View]) -> None:
        """Put in the next sample."""
        self.files.append(pixels.content)
        self.drawn.append(views)

    def content(self) -> Content:
        """The files in one piece, their boxes, and the draws."""
        content = shared_bytes(sum(map(len, self.files)))
        np.concatenate([np.frombuffer(file, np.uint8) for file in self.files], out=content.numpy())
        pages = list(zip(*self.drawn, strict=True))
        boxes = tuple(torch.tensor([view.box for view in page], dtype=torch.int32) for page in pages)
        files = Files(content, torch.tensor([len(file) for file in self.files]), boxes, self.size)
        return Content(draws=tuple(torch.from_numpy(pack(page)) for page in pages), files=files)
