"""An image that only decoding shows to be broken ends a trial in one line, from whichever process reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from transfer.engine.config import load_config
from transfer.engine.detection_data import BrokenImage, NamingMapper, training_batches


@pytest.fixture
def dicts(tmp_path: Path) -> list[dict[str, Any]]:
    """Two images: of the second, half is missing, which its header does not show."""
    for name in ("whole", "half"):
        Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / f"{name}.bmp")
    broken = tmp_path / "half.bmp"
    broken.write_bytes(broken.read_bytes()[:1800])
    return [
        {"file_name": str(tmp_path / f"{name}.bmp"), "image_id": name, "height": 30, "width": 40, "annotations": []}
        for name in ("whole", "half")
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_by_any_process(root: Path, dicts: list[dict[str, Any]], workers: int) -> None:
    cfg = load_config(root / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", "cpu")).cfg
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH = 1, 2
    with pytest.raises(BrokenImage) as error:
        for _ in training_batches(dicts, cfg, 1, stop=4, workers=workers):
            continue
    message = str(error.value)
    assert message.startswith(f"{dicts[1]['file_name']} cannot be read as an image (") and "\n" not in message
    assert "check --decode" in message


def test_another_error_keeps_its_traceback(root: Path, dicts: list[dict[str, Any]]) -> None:
    cfg = load_config(root / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", "cpu")).cfg
    mapper = NamingMapper(cfg, is_train=True)
    assert isinstance(mapper(dicts[0])["image"], torch.Tensor)
    with pytest.raises(KeyError):
        mapper({**dicts[0], "annotations": [{}]})
