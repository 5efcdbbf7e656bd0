"""Detectron2's `.pkl`: a dict of plain types and numpy arrays, which its checkpointer matches by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

AUTHOR = "ssl-detection-transfer"
"""Without an author Detectron2 reads a `.pkl` as Caffe2's and renames its tensors."""


def write(path: Path, tensors: Mapping[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    """Write tensors (Detectron2's names, float32) with their manifest."""
    content = {
        "model": {name: tensor.numpy() for name, tensor in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "manifest": manifest,
    }
    with open(path, "wb") as stream:
        pickle.dump(content, stream, protocol=4)
