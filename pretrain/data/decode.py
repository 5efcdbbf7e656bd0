"""An image file as RGB pixels, by one policy for every pipeline (docs/guides/data.md)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from common.errors import UserError

Pixels = TypeVar("Pixels")

CONDITIONS = (
    "grayscale",
    "CMYK",
    "palette",
    "transparent",
    "16-bit",
    "turned by EXIF",
    "animated",
    "of another format than named",
    "very large",
    "replaced",
)
"""What is counted of the images met: all but the last are decoded, as docs/guides/data.md says of each."""

REPLACED = "replaced"
"""The condition of an unreadable image whose place another has taken (DATA.UNREADABLE replace)."""

ORIENTATION = 0x0112
"""EXIF's tag."""

_GRAY, _CMYK, _CLEAR = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N"), ("CMYK",), ("LA", "PA", "RGBA")
_JPEG, _TIFF = ("JPEG", "MPO"), ("TIFF",)
_FORMATS = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": ("PNG",),
    ".bmp": ("BMP", "DIB"),
    ".ppm": ("PPM",),
    ".pgm": ("PPM",),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": ("WEBP",),
}


class UnreadableImage(UserError):
    """A file is there and may be read, but holds no whole image; the message names it."""


def decode_rgb(path: Path) -> Image.Image:
    """Decode one file as the released SimSiam does (torchvision's ImageFolder: Pillow's `convert("RGB")`).

    Grayscale is repeated over the three channels, CMYK and palette are converted, transparency is dropped. The EXIF
    orientation is not applied: the pixels are taken as they are stored, as in the original.

    Raises:
        UserError: the file is missing, cut short, or no image; names it.
    """
    return decode(path, to_rgb)[0]


def decode(path: Path, pixels_of: Callable[[Image.Image, bytes], Pixels]) -> tuple[Pixels, tuple[str, ...]]:
    """Read one file.

    Args:
        path: the file.
        pixels_of: makes RGB pixels of the image, whose header alone is read yet, or of the file's content.

    Returns:
        What `pixels_of` returned, and which `CONDITIONS` the image meets.

    Raises:
        UserError: the file is missing or may not be read; names it.
        UnreadableImage: it is empty, cut short, no image, or one that cannot be taken (see docs/guides/data.md).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({error.strerror}); mend or remove it") from error
    try:
        if not content:
            raise ValueError("it is empty")
        with Image.open(io.BytesIO(content)) as image:
            met = _conditions(image, path)
            return pixels_of(image, content), met
    except Image.UnidentifiedImageError as error:
        raise _unreadable(path, "no format that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> UnreadableImage:
    return UnreadableImage(f"{path} cannot be read as an image ({why}); mend, replace or remove it")


def to_rgb(image: Image.Image, _content: bytes = b"") -> Image.Image:
    """Pillow's `convert("RGB")`, but 16-bit values are divided by 256, which it would cut off at 255.

    Raises:
        ValueError: 32-bit values, whose range nobody knows.
    """
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no known range")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image.load()
        image.info.pop("transparency", None)  # dropped in any case; Pillow would warn
    return image.convert("RGB")


def _conditions(image: Image.Image, path: Path) -> tuple[str, ...]:
    """Which conditions an image meets, from its header."""
    mode, limit = image.mode, Image.MAX_IMAGE_PIXELS
    usual = _FORMATS.get(path.suffix.lower())
    met = (
        mode in _GRAY,
        mode in _CMYK,
        mode in ("P", "PA"),
        mode in _CLEAR or "transparency" in image.info,
        mode.startswith("I;16"),
        "exif" in image.info and _orientation(image) not in (0, 1),
        image.format not in _JPEG and bool(getattr(image, "is_animated", False)),
        usual is not None and image.format not in usual,
        limit is not None and image.width * image.height > limit,
    )
    return tuple(name for name, so in zip(CONDITIONS, met, strict=False) if so)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block is no fault of the pixels, and Pillow raises whatever it meets
        return 1
