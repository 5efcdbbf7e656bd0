"""The backbone file (`backbone/1`): metadata of a safetensors file or of a converted `.pth`, and preprocessing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import ConfigDict, Field, field_validator

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json, sha256_of
from ssl_transfer.formats import HEX_DIGEST, SEAL_REMEDY, FileFormat
from ssl_transfer.formats.results import PRETRAIN, RESULT_FILE

BACKBONE_FORMAT = "backbone/1"
PTH_METADATA = "backbone_metadata"
"""Attribute of a converted `.pth`'s OrderedDict that holds what a safetensors file has as metadata."""

Branch = Literal["online", "target"]
Positive = Annotated[float, Field(gt=0)]


class Preprocessing(FileFormat):
    """How an image becomes the network's input; stored with the weights."""

    model_config = ConfigDict(extra="forbid")

    channel_order: Literal["RGB", "BGR"] = Field(description="order of the input's channels")
    mean: tuple[float, float, float] = Field(
        strict=False, description="subtracted from values of 0…255, in `channel_order`"
    )
    std: tuple[Positive, Positive, Positive] = Field(
        strict=False, description="divides the difference, in `channel_order`"
    )
    stride_in_1x1: bool = Field(
        description="whether a stage's stride is in the first 1×1 convolution (Caffe) or in the 3×3 (torchvision)"
    )


TORCHVISION = Preprocessing(
    channel_order="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), stride_in_1x1=False
)
"""ImageNet mean and standard deviation in RGB, as torchvision and most self-supervised repositories use."""

MSRA = Preprocessing(channel_order="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), stride_in_1x1=True)
"""Caffe's preprocessing: BGR, no division, stride in the 1×1 (Detectron2's defaults)."""


class BackboneMetadata(FileFormat):
    """The metadata, which are strings: `preprocessing`, `manifest` and `origin` hold JSON."""

    format: Literal["backbone/1"] = Field(default="backbone/1", description="`backbone/1`")
    arch: str = Field(description="`resnet50`, `resnet18_cifar`, …")
    branch: Branch = Field(description="`online`, or `target` for the momentum encoder of a method that has one")
    preprocessing: Preprocessing = Field(description="how images are prepared for these weights")
    manifest: dict[str, Any] | None = Field(
        default=None, description="the manifest (`manifest/1`); only in files that tools/convert.py wrote"
    )
    origin: dict[str, Any] | None = Field(
        default=None,
        description=(
            "how the weights were trained: `method`, `recipe` (stem of the config file), `epochs`, `epoch`, "
            "`iteration`, `config` (resolved YAML text), `toy`, `commit`, `versions`"
        ),
    )

    digest: str | None = Field(
        default=None,
        description=(
            "SHA-256 (hex) of the header without this entry (JSON, sorted keys, no blanks) and of all tensors' bytes; "
            "absent in files of earlier releases and in a `.pth`"
        ),
    )

    @field_validator("preprocessing", "manifest", "origin", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError("is not JSON") from error

    def encode(self) -> dict[str, str]:
        """The strings that a safetensors header holds."""
        strings = {"format": self.format, "arch": self.arch, "branch": self.branch}
        strings["preprocessing"] = json.dumps(self.preprocessing.as_dict(), sort_keys=True)
        if self.manifest is not None:
            strings["manifest"] = json.dumps(self.manifest)
        if self.origin is not None:
            strings["origin"] = json.dumps(self.origin, sort_keys=True)
        return strings


def seal_safetensors(content: bytes) -> list[bytes | memoryview]:
    """A safetensors file with a digest in its metadata and a sorted header: equal runs give equal files.

    Args:
        content: as safetensors writes it, with its header's keys shuffled.

    Returns:
        The parts to write one after the other.
    """
    stream = io.BytesIO(content)
    header = _read_header(stream)
    return _seal(header, [memoryview(content)[stream.tell() :]])


def float32_safetensors(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A sealed safetensors file of float32 arrays, without a copy of them.

    Args:
        tensors: C-contiguous numpy arrays by name.
        metadata: strings.

    Returns:
        The parts to write one after the other.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[memoryview] = []
    end = 0
    for name in sorted(tensors):
        array = tensors[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, end]}
        parts.append(array.reshape(-1).data)
    return _seal(header, parts)


def _seal(header: dict[str, Any], parts: Sequence[memoryview]) -> list[bytes | memoryview]:
    """The layout: 8 bytes of header length, the header (JSON, padded to a multiple of 8), the tensors."""
    header.setdefault("__metadata__", {})["digest"] = _content_digest(header, parts)
    text = _header_text(header)
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)) + text, *parts]


def check_backbone_file(path: str | Path) -> None:
    """Compare a safetensors file with the digest in its metadata and with the `result.json` beside it, if there is one.

    Files without either, such as those of other projects, are accepted.

    Raises:
        UserError: the file is not what was written.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            header = _read_header(stream)
            is_whole = _has_its_digest(header, stream)
    except (OSError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); {SEAL_REMEDY}") from error
    if not is_whole:
        raise UserError(f"{path} is damaged: its content does not have the digest in its metadata; {SEAL_REMEDY}")
    recorded = _recorded_sha256(path)
    if recorded is not None and recorded != sha256_of(path):
        where = path.with_name(RESULT_FILE)
        raise UserError(f"{path} is damaged or was replaced: its SHA-256 is not the one in {where}; {SEAL_REMEDY}")


def _read_header(stream: BinaryIO) -> dict[str, Any]:
    """The header; the stream is then at the first tensor's first byte."""
    (length,) = struct.unpack("<Q", stream.read(8))
    size = stream.seek(0, os.SEEK_END)
    if length > size:
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    stream.seek(8)
    header: dict[str, Any] = json.loads(stream.read(length))
    return header


def _header_text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _content_digest(header: Mapping[str, Any], parts: Iterable[bytes | memoryview]) -> str:
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "digest"}
    digest = hashlib.sha256(_header_text({**header, "__metadata__": metadata}))
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _has_its_digest(header: Mapping[str, Any], stream: BinaryIO) -> bool:
    """Whether a file has the digest that it holds, or is of another project or of a release that wrote none.

    A digest whose own name was damaged is an unknown entry of 64 hex digits.
    """
    metadata = header.get("__metadata__") or {}
    if not metadata.keys() & {"arch", "branch", "preprocessing"}:
        return True
    if "digest" in metadata:  # in small pieces: large ones make malloc keep the tensors' memory afterwards
        return bool(metadata["digest"] == _content_digest(header, iter(lambda: stream.read(1 << 16), b"")))
    unknown = metadata.keys() - BackboneMetadata.model_fields.keys() - {"backbone_sha256"}
    return not any(HEX_DIGEST.fullmatch(metadata[key]) for key in unknown)


def _recorded_sha256(path: Path) -> str | None:
    """The file's SHA-256 in the pre-training result beside it; None where there is none."""
    try:
        result = read_json(path.with_name(RESULT_FILE))
    except UserError:
        return None
    if not isinstance(result, dict) or result.get("format") != PRETRAIN:
        return None
    names = {result.get(key): result.get(f"{key}_sha256") for key in ("backbone", "backbone_target")}
    return names.get(path.name)
