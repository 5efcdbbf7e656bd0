"""Benchmarks of what a checkpoint's checksums cost when it is written and when a run resumes from it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchvision.models import resnet50

from benchmarks.paired import PairedBenchmark
from ssl_transfer.training.checkpoint import load_checkpoint, save_checkpoint, set_aside_if_damaged

COPIES = 3
"""A ResNet-50's 102 MB so many times: 307 MB, SimSiam's checkpoint (weights, predictor and momenta)."""


def benchmarks(folder: Path) -> Iterator[PairedBenchmark]:
    """Write and read the checkpoint with and without checksums; `folder` is a scratch folder."""
    folder.mkdir()
    path = folder / "checkpoint_0000001.pth"

    @functools.cache
    def content() -> dict[str, Any]:
        torch.manual_seed(0)
        return {f"part{number}": resnet50().state_dict() for number in range(COPIES)}

    def save(checksums: bool = True) -> None:
        torch.serialization.set_crc32_options(checksums)
        save_checkpoint(path, content())
        torch.serialization.set_crc32_options(True)

    def resume() -> dict[str, Any]:
        assert not set_aside_if_damaged(path)
        return load_checkpoint(path, lambda _: None, "")

    def resume_unchecked() -> Any:
        return torch.load(path, map_location="cpu", weights_only=True)

    def equal() -> str:
        for checksums in (False, True):  # the last one is resumed from
            save(checksums)
            found = resume_unchecked()
            names = [(part, name) for part, whole in content().items() for name in whole]
            same = [part in found and torch.equal(found[part][name], content()[part][name]) for part, name in names]
            assert all(same), "another tensor is read"
        return "every tensor"

    size = f"{sum(t.numel() * t.element_size() for part in content().values() for t in part.values()) / 1e6:.0f} MB"
    name = f"write a checkpoint, {size}"
    yield PairedBenchmark(name, "without checksums", save, lambda: save(False), equal, 1, "files")
    name = f"resume from a checkpoint, {size}"
    yield PairedBenchmark(name, "torch.load, unchecked", resume, resume_unchecked, equal, 1, "files")
