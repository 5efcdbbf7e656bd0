"""Which JPEG files may be decoded unseen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.data.decode import is_plain_jpeg


def _file(mode: str = "RGB", **words: Any) -> bytes:
    pixels = np.random.RandomState(0).randint(0, 256, (64, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **words)
    return stream.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"mode": "L"},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"comment": b"\xff\xd9 in a comment"},
        {"exif": b"Exif\0\0" + _file()},  # as cameras' thumbnails: a file within the file
        {"subsampling": 0, "quality": 100},
    ],
)
def test_complete_common_jpeg_is_plain(words: dict[str, Any]) -> None:
    assert is_plain_jpeg(_file(**words))


def test_truncated_extended_or_misplaced_data_is_not_plain() -> None:
    whole = _file()
    frame = whole.index(b"\xff\xc0")
    assert not any(is_plain_jpeg(whole[:length]) for length in range(0, len(whole), 7))
    assert not is_plain_jpeg(whole + b"\0") and not is_plain_jpeg(whole + whole) and not is_plain_jpeg(b"\0" + whole)
    for marker in (0xC3, 0xC9, 0xCA, 0xCC, 0xD8, 0x01, 0xF7):  # lossless, arithmetic, another start, reserved
        assert not is_plain_jpeg(whole[: frame + 1] + bytes([marker]) + whole[frame + 2 :])
    assert not is_plain_jpeg(whole[:-40] + b"\xff\xc0" + whole[-38:])  # a second frame within the scan
    assert not is_plain_jpeg(b"") and not is_plain_jpeg(b"\xff\xd8\xff\xd9")


def test_damaged_coded_data_is_left_to_the_decoder() -> None:
    whole = bytearray(_file())
    whole[-400:-300] = bytes(100)
    assert is_plain_jpeg(bytes(whole))
    with Image.open(io.BytesIO(whole)) as image:
        image.load()
