"""`TRANSFER.SPLITS.NAME`: a user's own split in a task's config file."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from ssl_transfer.formats import FileFormat


class SplitEntry(FileFormat):
    """A list of annotated images in VOC's or COCO's layout; paths are relative to the data root."""

    model_config = ConfigDict(extra="forbid")

    LAYOUT: Literal["voc", "coco"] = Field(description="`voc`: a folder of VOCdevkit; `coco`: one JSON file")
    FOLDER: str = Field(
        min_length=1, description="`voc`: holds Annotations, ImageSets, JPEGImages; `coco`: holds the images"
    )
    IMAGE_SET: str = Field("", description="`voc`: list of images, a file in ImageSets/Main without `.txt`")
    ANNOTATIONS: str = Field("", description="`coco`: the JSON file")
    YEAR: Literal[2007, 2012] = Field(2007, description="`voc`: AP of 2007 (11 points) or 2012 (area under the curve)")
    COUNT: int | None = Field(None, description="number of images that the split must have; not checked by default")
    EXTENSION: str = Field("jpg", description="`voc`: extension of the image files where an id has several")

    @model_validator(mode="after")
    def _has_its_list(self) -> Self:
        key = "IMAGE_SET" if self.LAYOUT == "voc" else "ANNOTATIONS"
        if not getattr(self, key):
            raise ValueError(f"{key} is missing; the layout {self.LAYOUT} needs it")
        return self
