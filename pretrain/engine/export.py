"""The backbone file: what pre-training hands on; and a classifier's, where there is one (docs/reference/formats.md)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from common.files import atomic_write
from common.formats.backbone import BackboneMetadata, Branch, Preprocessing

CLASSIFIER_FORMAT = "classifier/1"


def write_backbone(
    path: Path,
    tensors: dict[str, torch.Tensor],
    arch: str,
    preprocessing: dict[str, Any],
    origin: dict[str, Any],
    branch: Branch = "online",
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
    block = Preprocessing.parse(preprocessing, path)
    metadata = BackboneMetadata(arch=arch, branch=branch, preprocessing=block, origin=origin).encode()
    with atomic_write(path) as stream:
        stream.write(_sorted_header(safetensors.torch.save(tensors, metadata)))


def write_classifier(path: Path, layer: nn.Linear, classes: Sequence[str], arch: str, backbone_sha256: str) -> None:
    """Write the layer from a backbone's feature to the classes atomically, as `fc.weight` and `fc.bias`, float32.

    Args:
        path: where to.
        layer: on any device.
        classes: what its outputs stand for.
        arch: MODEL.ARCH.
        backbone_sha256: of the backbone file that it belongs to.
    """
    tensors = {f"fc.{name}": t.detach().to("cpu", torch.float32).contiguous() for name, t in layer.named_parameters()}
    metadata = {
        "format": CLASSIFIER_FORMAT,
        "arch": arch,
        "classes": json.dumps(list(classes)),
        "backbone_sha256": backbone_sha256,
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
