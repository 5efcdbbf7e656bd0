"""The backbone file: what pre-training hands on (docs/formats.md)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from common.files import atomic_write

FORMAT = "backbone/1"


def write_backbone(
    path: Path,
    tensors: dict[str, torch.Tensor],
    arch: str,
    preprocessing: dict[str, Any],
    origin: dict[str, Any],
    branch: str = "online",
) -> None:
    """Write a backbone file atomically.

    Args:
        path: where to.
        tensors: as `models.encoder.backbone_tensors` gives them.
        arch: MODEL.ARCH.
        preprocessing: as `data.preprocessing.block` gives it.
        origin: where the weights come from; JSON types.
        branch: `online`, or `target` for a momentum encoder.
    """
    metadata = {
        "format": FORMAT,
        "arch": arch,
        "branch": branch,
        "preprocessing": json.dumps(preprocessing, sort_keys=True),
        "origin": json.dumps(origin, sort_keys=True),
    }
    with atomic_write(path) as stream:
        stream.write(_sorted_header(safetensors.torch.save(tensors, metadata)))


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys in order: safetensors shuffles them; equal runs must give equal files.

    The layout: 8 bytes of header length, the header (JSON, padded with spaces to a multiple of 8), the tensors.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
