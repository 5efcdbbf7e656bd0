"""A trial's detections (`detections.safetensors`): boxes, what they match, AP on resampled test sets. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ssl_transfer.errors import UserError
from ssl_transfer.files import atomic_write, describe_unreadable, read_input
from ssl_transfer.formats import FileFormat
from ssl_transfer.formats.backbone import seal_safetensors

DETECTIONS: Final = "detections/1"
DETECTIONS_FILE, EVALUATED_FILE = "detections.safetensors", "evaluation.detections.safetensors"
"""Of a trial, and of `--eval-only`."""
AREAS = ("all", "small", "medium", "large")
"""COCO's ranges of an object's area, used for VOC too."""
AREA_BOUNDS = ((0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10))
"""In pixels; both ends belong to a range."""
THRESHOLDS = tuple(percent / 100.0 for percent in range(50, 100, 5))
"""The IoUs that AP is averaged over; AP50 and AP75 are the first and the sixth."""
REMEDY = "tools/transfer.py --eval-only writes the detections anew"
LIMIT = 4 << 30


@dataclass(frozen=True)
class Matches:
    """Matched detections of one branch in the metric's own order: class by class, best score first.

    Ties are in the order in which the metric breaks them.

    Attributes:
        image: (N,) index of the image in the split.
        label: (N,) ascending.
        score: (N,) as the metric sorts it (VOC: rounded to 3 decimals).
        hit: (A, N) bit t: a true positive at THRESHOLDS[t] among the objects of AREAS[a].
        ignored: (A, N) bit t: counts neither as true nor as false positive.
        detection: (N,) row of the file's detections.
        object_image: (M,) annotated objects that count (not difficult, no crowd).
        object_label: (M,).
        object_area: (M,) bit a: it counts in AREAS[a].
    """

    image: NDArray[np.int32]
    label: NDArray[np.int16]
    score: NDArray[np.float64]
    hit: NDArray[np.uint16]
    ignored: NDArray[np.uint16]
    detection: NDArray[np.int32]
    object_image: NDArray[np.int32]
    object_label: NDArray[np.int16]
    object_area: NDArray[np.uint8]


Resamples = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Branch → AP, AP50, AP75 → (R,) in per cent."""
MATCH_TENSORS = tuple(one.name for one in fields(Matches) if one.name not in ("image", "label"))
"""What the file holds of them: image and class of a match are those of its detection."""


class DetectionsMetadata(FileFormat):
    """The metadata of the file, JSON under the key `detections`."""

    format: Literal["detections/1"] = Field(default=DETECTIONS, description="format and its version")
    images: list[str] = Field(description="ids of the test split's images, in its order")
    classes: list[str] = Field(description="class names, in the order of the labels")
    metric: Literal["voc2007", "voc2012", "coco"] = Field(description="definition of AP")
    test_split: str = Field(description="the split measured on")
    truth: str = Field(description="SHA-256 of the annotations as read: ids, sizes, classes, boxes, flags")
    toy: bool = Field(description="true if made with an overlay that shrinks the run")
    branches: list[Literal["bbox", "segm"]] = Field(description="the branches that were matched")
    resampled: list[str] = Field(default=[], description="metrics that were resampled, such as `AP50`")
    draws: str = Field(default="", description="digest of the resampled multiplicities of images; empty without")
    resamples_sha256: str = Field(description="SHA-256 of these fields and the resampled values, all that tables read")

    def digest(self, resamples: Resamples) -> str:
        """What `resamples_sha256` must be."""
        content = hashlib.sha256(json.dumps({**self.as_dict(), "resamples_sha256": ""}, sort_keys=True).encode())
        for branch in sorted(resamples):
            for name in sorted(resamples[branch]):
                content.update(f"{branch}.{name}".encode() + resamples[branch][name].tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Detections:
    """A trial's detections on its test split, what they match, and its AP on resampled test sets.

    Attributes:
        images: ids of the split's images as text, in the split's order.
        classes: class names, in the order of the labels.
        metric: `voc2007`, `voc2012` or `coco`.
        test_split: the split measured on.
        truth: SHA-256 of the annotations as read (ids, sizes, classes, boxes, flags).
        toy: made with an overlay that shrinks the run.
        image: (N,) index of each detection's image, ascending.
        label: (N,) class.
        score: (N,) as the detector answered.
        boxes: (N, 4) x0, y0, x1, y1 in pixels, as the detector answered.
        masks: COCO's run lengths; None unless TRANSFER.KEEP_MASKS.
        matches: by branch (bbox, segm).
        resamples: branch → AP, AP50, AP75 → (R,) per cent; empty where not computed.
        draws: digest of the multiplicities that `resamples` used; empty without.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str
    test_split: str
    truth: str
    toy: bool
    image: NDArray[np.int32]
    label: NDArray[np.int16]
    score: NDArray[np.float32]
    boxes: NDArray[np.float32]
    masks: tuple[bytes, ...] | None = None
    matches: Mapping[str, Matches] = field(default_factory=dict)
    resamples: Resamples = field(default_factory=dict)
    draws: str = ""

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write the file atomically; equal content gives equal bytes. Returns its SHA-256."""
        about = DetectionsMetadata(
            images=list(self.images),
            classes=list(self.classes),
            metric=self.metric,  # type: ignore[arg-type]
            test_split=self.test_split,
            truth=self.truth,
            toy=self.toy,
            branches=list(self.matches),  # type: ignore[arg-type]
            resampled=sorted({name for values in self.resamples.values() for name in values}),
            draws=self.draws,
            resamples_sha256="",
        )
        about = about.model_copy(update={"resamples_sha256": about.digest(self.resamples)})
        text = json.dumps({"format": DETECTIONS, **about.as_dict()}, ensure_ascii=False)
        content = b"".join(seal_safetensors(save(self._tensors(), {"detections": text})))
        with atomic_write(path) as stream:
            stream.write(content)
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def read(cls, path: str | os.PathLike[str], sha256: str | None = None) -> Detections:
        """Read a file that `write` made.

        Args:
            path: the file.
            sha256: its digest in the `result.json` beside it; None: the file's own digest alone is compared.

        Raises:
            UserError: it is missing, damaged or of another format.
        """
        try:
            content = read_input(path, LIMIT)
        except OSError as error:
            raise UserError(f"{describe_unreadable(path, error)}; {REMEDY}") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path} is damaged or was replaced: its SHA-256 is not the recorded one; {REMEDY}")
        try:
            if b"".join(seal_safetensors(content)) != content:
                raise ValueError("its content does not have its digest")
            header = json.loads(content[8 : 8 + struct.unpack_from("<Q", content)[0]])
            about = DetectionsMetadata.parse(json.loads(header["__metadata__"]["detections"]), path)
            return cls._assemble(about, load(content))
        except (LookupError, ValueError, TypeError, AttributeError, struct.error, SafetensorError) as error:
            raise UserError(f"{path} is damaged or no file of detections ({error}); {REMEDY}") from error

    def _tensors(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("image", "label", "score", "boxes")}
        if self.masks is not None:
            found["masks"] = np.frombuffer(b"".join(self.masks), np.uint8)
            found["mask_lengths"] = np.array([len(mask) for mask in self.masks], np.int32)
        for branch, matches in self.matches.items():
            found |= {f"{branch}.{name}": getattr(matches, name) for name in MATCH_TENSORS}
        for branch, values in self.resamples.items():
            found |= {f"{branch}.resamples.{name}": value for name, value in values.items()}
        return {name: np.ascontiguousarray(value) for name, value in found.items()}

    @classmethod
    def _assemble(cls, about: DetectionsMetadata, tensors: Mapping[str, NDArray[Any]]) -> Detections:
        image, label = tensors["image"], tensors["label"]
        matches: dict[str, Matches] = {}
        for branch in about.branches:
            parts = {name: tensors[f"{branch}.{name}"] for name in MATCH_TENSORS}
            rows = parts["detection"]
            matches[branch] = Matches(image=image[rows], label=label[rows], **parts)
        masks = None
        if "masks" in tensors:
            ends = np.cumsum(tensors["mask_lengths"], dtype=np.int64)
            masks = tuple(part.tobytes() for part in np.split(tensors["masks"], ends)[: len(ends)])
        resamples: dict[str, dict[str, NDArray[np.float64]]] = {
            branch: {name: tensors[f"{branch}.resamples.{name}"] for name in about.resampled}
            for branch in (about.branches if about.resampled else ())
        }
        about_images = tuple(about.images), tuple(about.classes), about.metric, about.test_split, about.truth
        arrays = image, label, tensors["score"], tensors["boxes"]
        return cls(*about_images, about.toy, *arrays, masks, matches, resamples, about.draws)
