"""The list of public checkpoints (`configs/zoo.yaml`), and the record of a checkpoint's first use."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from ssl_transfer.formats import FileFormat
from ssl_transfer.formats.backbone import Branch

UNKNOWN = "unknown"


class ZooEntry(FileFormat):
    """A public checkpoint; its key in the file is the name that `zoo:NAME` refers to."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(description="method, epochs, batch size")
    url: str = Field(description="where its authors published it, or `unknown`")
    layout: str = Field(description="name of the layout that reads it")
    branch: Branch = Field(description="which encoder to read")
    licence: str = Field(description="licence of the weights, as their repository states it")
    source: str = Field(description="where URL and numbers are published")
    published: dict[str, Any] = Field(default={}, description="metric and its published value")
    sha256: str = Field(default=UNKNOWN, description="published SHA-256 of the file, or `unknown`")
    sha256_prefix: str = Field(default="", description="its first digits, where only those are published")
    md5_prefix: str = Field(default="", description="first digits of the MD5, where those are published")


class Zoo(FileFormat):
    """The file: name → entry."""

    __pydantic_extra__: dict[str, ZooEntry] = Field(init=False)

    @property
    def entries(self) -> dict[str, ZooEntry]:
        """Every checkpoint by name, in the file's order."""
        return self.__pydantic_extra__


class ZooRecord(FileFormat):
    """`NAME.json` beside a downloaded checkpoint: its digest when it was first used."""

    name: str = Field(description="the checkpoint's name")
    url: str = Field(description="where it was downloaded from")
    sha256: str = Field(description="SHA-256 of the file, hex")
    bytes: int = Field(description="size of the file")
    first_used: str = Field(description="time of the first use, ISO 8601, UTC")


class HubRecord(ZooRecord):
    """`ORG--NAME@REVISION.json` of a checkpoint of the Hugging Face Hub: what its name stood for when first used."""

    commit: str = Field(pattern="^[0-9a-f]{40}$", description="commit of the repository that the revision was")
    file: str = Field(description="the file in the repository")
