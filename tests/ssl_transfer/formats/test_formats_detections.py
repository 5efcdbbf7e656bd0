"""The file of detections: what is written is read, equal content gives equal bytes, damage is one line."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_transfer.errors import UserError
from ssl_transfer.files import sha256_of
from ssl_transfer.formats.detections import DETECTIONS_FILE, Detections, Matches


def made(images: int = 3, per_image: int = 2) -> Detections:
    """Detections of one class, each of which hits at IoU 0.5."""
    count = images * per_image
    rows = np.arange(count, dtype=np.int32)[::-1].copy()
    image, label = np.repeat(np.arange(images, dtype=np.int32), per_image), np.zeros(count, np.int16)
    score = np.linspace(0, 1, count, dtype=np.float32)
    matches = Matches(
        image=image[rows],
        label=label[rows],
        score=score[rows].astype(np.float64),
        hit=np.ones((4, count), np.uint16),
        ignored=np.zeros((4, count), np.uint16),
        detection=rows,
        object_image=np.arange(images, dtype=np.int32),
        object_label=np.zeros(images, np.int16),
        object_area=np.full(images, 5, np.uint8),
    )
    return Detections(
        tuple(f"00000{index}" for index in range(images)), ("Käfer",), "voc2007", "voc_2007_test", "a" * 64, True,
        image, label, score, np.ones((count, 4), np.float32), tuple(b"1" * index for index in range(count)),
        {"bbox": matches}, {"bbox": {name: np.arange(5.0) for name in ("AP", "AP50", "AP75")}}, "b" * 64,
    )  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Whether two of these objects have equal values of equal types."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (Detections, Matches)):
        return all(same(getattr(one, part.name), getattr(other, part.name)) for part in fields(one))
    return bool(one == other)


@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("without", [{}, {"masks": None}, {"resamples": {}, "draws": ""}])
def test_what_is_written_is_read(tmp_path: Path, images: int, without: dict[str, Any]) -> None:
    detections = replace(made(images), **without)
    digest = detections.write(tmp_path / "one")
    assert digest == sha256_of(tmp_path / "one") == detections.write(tmp_path / "two")
    assert same(Detections.read(tmp_path / "one", digest), detections)
    assert same(Detections.read(tmp_path / "one"), detections)


def test_every_flipped_bit_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / DETECTIONS_FILE
    made().write(file)
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 37):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(UserError, match=r"^\S+detections\.safetensors is damaged .*--eval-only") as refused:
            Detections.read(file)
        assert "\n" not in str(refused.value)


def test_another_trials_file_is_refused(tmp_path: Path) -> None:
    made(2).write(tmp_path / "other")
    with pytest.raises(UserError, match="its SHA-256 is not the recorded one"):
        Detections.read(tmp_path / "other", made(3).write(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"missing does not exist; .*--eval-only"):
        Detections.read(tmp_path / "missing")
