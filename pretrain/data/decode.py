"""Decode image files to RGB pixels, with the same policy in every pipeline (docs/guides/data.md)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image

from ssl_transfer.errors import UserError

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
"""Properties of images that are counted and logged; docs/guides/data.md describes how each is handled."""

REPLACED = "replaced"
"""Condition of an image that replaces an unreadable one (DATA.UNREADABLE replace)."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

JPEG_START, JPEG_END = b"\xff\xd8", 0xD9

HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of Huffman-coded frames: baseline, extended, progressive (ITU-T T.81, table B.1)."""

SEGMENTS = frozenset([0xC4, 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])
"""Markers of other allowed segments: tables, scans, restart interval, application data, comments."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # a scan holds only stuffed zeros and restart markers

TAIL = 4096
"""Bytes at a file's end in which the mark of its end is looked for; other bytes may follow it."""
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}

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
    """A readable file does not hold a complete image; the message names it."""


def decode_rgb(path: Path) -> Image.Image:
    """Decode a file as the released SimSiam does (torchvision's ImageFolder: Pillow's `convert("RGB")`).

    Grayscale is repeated over the channels, CMYK and palette images are converted, transparency is dropped. The EXIF
    orientation is not applied, as in the original.

    Raises:
        UserError: the file is missing, truncated, or not an image; the message names it.
    """
    return decode(path, to_rgb)[0]


def decode(path: Path, to_pixels: Callable[[Image.Image, bytes], Pixels]) -> tuple[Pixels, tuple[str, ...]]:
    """Read and decode a file.

    Args:
        path: the file.
        to_pixels: converts the image, of which only the header is loaded, or the file's content, to RGB pixels.

    Returns:
        The result of `to_pixels`, and the `CONDITIONS` that the image meets.

    Raises:
        UserError: the file is missing or cannot be read; the message names it.
        UnreadableImage: it is empty, truncated, not an image, or of an unsupported kind; the message names it.
    """
    with _file_errors(path):
        content = path.read_bytes()
    with _image_errors(path), _open(io.BytesIO(content)) as image:
        conditions = _conditions(image, path)
        return to_pixels(image, content), conditions


def read_header(path: Path) -> None:
    """Read a file's header and its end: raises as `decode` does, except for what only the pixels show."""
    with _file_errors(path):
        stream = path.open("rb")
    with stream, _image_errors(path), _open(stream) as image:
        _require_range(image)
        end = _ENDS.get(image.format or "", b"")
        place = stream.tell()
        stream.seek(max(stream.seek(0, io.SEEK_END) - TAIL, 0))
        is_complete = end in stream.read()
        stream.seek(place)
        if not is_complete:  # it may be cut off
            to_rgb(image)


def _open(stream: IO[bytes]) -> Image.Image:
    if not stream.read(1):
        raise ValueError("it is empty")
    stream.seek(0)
    return Image.open(stream)


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({error.strerror}); restore or remove it") from error


@contextlib.contextmanager
def _image_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        known = "no format that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else ""
        why = known or " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{path} cannot be read as an image ({why}); repair, replace or remove it") from error


def _require_range(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no known range")


def to_rgb(image: Image.Image, _content: bytes = b"") -> Image.Image:
    """Pillow's `convert("RGB")`, except that 16-bit values are divided by 256 (Pillow would clip them at 255).

    Raises:
        ValueError: 32-bit values, whose range is unknown.
    """
    _require_range(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image.load()
        image.info.pop("transparency", None)  # dropped by the conversion, with a warning
    return image.convert("RGB")


def _conditions(image: Image.Image, path: Path) -> tuple[str, ...]:
    """The conditions that an image meets, from its header."""
    mode, limit = image.mode, Image.MAX_IMAGE_PIXELS
    expected = _FORMATS.get(path.suffix.lower())
    flags = (
        mode in _GRAY,
        mode in _CMYK,
        mode in ("P", "PA"),
        mode in _CLEAR or "transparency" in image.info,
        mode.startswith("I;16"),
        "exif" in image.info and _orientation(image) not in (0, 1),
        image.format not in _JPEG and bool(getattr(image, "is_animated", False)),
        expected is not None and image.format not in expected,
        limit is not None and image.width * image.height > limit,
    )
    return tuple(name for name, flag in zip(CONDITIONS, flags, strict=False) if flag)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds of errors for a damaged EXIF block; the pixels may be intact
        return 1


def is_plain_jpeg(content: bytes) -> bool:
    """Whether a file is one complete Huffman-coded JPEG frame, from its first byte to its last, without stray markers.

    Within a scan, libjpeg stops only at a wrong marker; OpenCV then leaves the rest gray and reports no error. Damage
    within the coded data stops neither decoder; damage to the tables before it stops both.

    Args:
        content: the whole file.
    """
    position, frames = len(JPEG_START), 0
    while content.startswith(JPEG_START) and (found := _MARKER.search(content, position)):
        marker = found[1][0]
        if marker == JPEG_END:
            return frames == 1 and found.end() == len(content)
        if marker in HUFFMAN_FRAMES:
            frames += 1
        elif marker not in SEGMENTS:
            return False
        position = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
    return False
