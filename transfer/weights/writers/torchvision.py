"""torchvision's names as a flat `.pth`, which torchvision, timm and mmdetection load as it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transfer.weights.backbone_file import metadata
from transfer.weights.containers import METADATA


def write(path: Path, tensors: Mapping[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    """Write a flat state dict.

    The metadata go inside as an attribute of the OrderedDict: `load_state_dict` does not look at it and `weights_only`
    loading admits it. Each tensor is cloned, because torch.save writes a tensor's whole storage.
    """
    state = OrderedDict((name, tensor.detach().clone()) for name, tensor in tensors.items())
    setattr(state, METADATA, metadata(manifest))
    torch.save(state, path)
