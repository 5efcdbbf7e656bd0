"""The manifest of converted weights (`manifest/1`): `NAME.manifest.json`, and the same inside the weights file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ssl_transfer.formats import FileFormat, SealedFormat
from ssl_transfer.formats.backbone import Branch, Preprocessing

MANIFEST_FORMAT = "manifest/1"


class TensorEntry(FileFormat):
    """A written tensor."""

    shape: list[int] = Field(description="its shape")
    sha256: str = Field(description="SHA-256 of its bytes (C order, little-endian float32), hex")


class SourceFile(FileFormat):
    """The file that the weights were read from."""

    path: str = Field(description="the path as the user wrote it")
    sha256: str = Field(description="SHA-256 of the file, hex; of an index of shards, one over all its files' digests")
    bytes: int = Field(description="size of the file")
    layout: str = Field(description="name of the layout")
    rule: str = Field(description="what in the file the layout was recognised by")
    branch: Branch = Field(description="which encoder was read")
    address: str | None = Field(
        default=None, description="`hf-hub:ORG/NAME@COMMIT:FILE` of a checkpoint of the Hugging Face Hub"
    )


class DroppedTensor(FileFormat):
    """A tensor, or a group of tensors, of the source that the backbone does not need."""

    name: str = Field(description="name of the tensor, or `PREFIX.*`")
    why: str = Field(description="what it is")


class Proof(FileFormat):
    """Result of the verification of the written file."""

    tensors: str = Field(description="how many tensors are equal to the source, of how many: `265/265`")
    forward_max_abs_diff: float = Field(
        description="largest absolute difference of any feature, over all stages and detectors"
    )
    detectron2_load: Literal["exact"] | None = Field(
        default=None, description="`exact`: Detectron2's checkpointer loads every tensor (of a `.pkl`)"
    )
    torchvision_load: Literal["exact"] | None = Field(
        default=None, description="`exact`: torchvision's ResNet loads every tensor (of a `.pth` or `.safetensors`)"
    )

    def summary(self) -> str:
        """The proof as one line."""
        loader = "detectron2" if self.detectron2_load else "torchvision"
        return f"{self.tensors} tensors · forward max |Δ| {self.forward_max_abs_diff:.0e} · {loader} load exact"


class ToolVersion(FileFormat):
    """The code that wrote the file."""

    version: str = Field(description="version of the package, or `unknown`")
    commit: str | None = Field(description="commit of the checkout")


class Manifest(SealedFormat):
    """Where converted weights come from, what was written and what was verified."""

    format: Literal["manifest/1"] = Field(default="manifest/1", description="`manifest/1`")
    arch: str = Field(description="`resnet18`, `resnet34`, `resnet50`, `resnet101` or `resnet152`")
    source: SourceFile = Field(description="the file that the weights were read from")
    preprocessing: Preprocessing = Field(description="how images are prepared for these weights")
    origin: dict[str, Any] | None = Field(
        default=None, description="how the weights were trained, as in the backbone file; null where it is not known"
    )
    tensors: dict[str, TensorEntry] = Field(description="every written tensor by the name it has in the weights file")
    count: int = Field(description="how many tensors were written: 265 for a ResNet-50")
    left_out: list[DroppedTensor] = Field(default=[], description="tensors of the source that were not written")
    converted_up: list[str] = Field(default=[], description="tensors that were float16 or bfloat16 in the source")
    warnings: list[str] = Field(default=[], description="what the user should know, one line each")
    proof: Proof | None = Field(default=None, description="result of the verification; null with `--no-verify`")
    tool: ToolVersion | None = Field(default=None, description="the code that wrote the file")
    toy: bool = Field(default=False, description="whether the weights were trained on toy data")
