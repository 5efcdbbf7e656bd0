"""torchvision's names as safetensors: this project's backbone file, with a manifest in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transfer.weights.backbone_file import metadata


def write(path: Path, tensors: Mapping[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    """Write tensors with their manifest."""
    from safetensors.numpy import save_file

    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, path, metadata=metadata(manifest))
