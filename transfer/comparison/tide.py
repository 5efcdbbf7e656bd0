"""TIDE's six kinds of error, and what correcting each kind alone would add to AP50.

Definition [Bolya et al. 2020, arXiv 2008.08115, sections 2.2 and 2.3]: a false positive belongs to one kind by its
largest IoU with objects of its class and of other classes, with 0.5 as foreground and 0.1 as background. Where two
kinds apply, the order is that of the authors' tool: localisation, classification, duplicate, background, both. An
object that is not found is missed, unless an error of classification or localisation is about it.

AP50 is the trial's own metric, and what it counts as true, false or ignored is read from the trial's matches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from ssl_transfer.formats.detections import Detections, Matches
from transfer.resampling.weighted_ap import average_precision
from transfer.tasks.datasets import Annotation
from transfer.tasks.task import Dataset

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, NONE = 0, 1, 2, 3, 4, -1
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def pixel_box(thing: Annotation, layout: str) -> tuple[float, float, float, float]:
    """An annotation's box as x, y, width, height in a detection's pixels; VOC counts from 1 and includes the last."""
    x, y, third, fourth = thing.box
    return (x - 1.0, y - 1.0, third - x + 1.0, fourth - y + 1.0) if layout == "voc" else thing.box


def counted_objects(dataset: Dataset) -> Floats:
    """(M, 6) image, label, x, y, width, height of the objects that count (not difficult, no crowd), image by image."""
    rows = [
        (index, thing.label, *pixel_box(thing, dataset.split.layout))
        for index, record in enumerate(dataset.records)
        for thing in record.annotations
        if not (thing.difficult or thing.crowd)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def find_errors(found: Detections, objects: Floats) -> dict[str, tuple[float, float]]:
    """Classify the errors of a trial's boxes, and correct each kind alone.

    Args:
        found: the trial's detections.
        objects: `counted_objects` of its test split.

    Returns:
        Each of KINDS → AP50 gained without it, in per cent, and the number of errors.
    """
    errors, number = _Errors(found, objects), len(KINDS) - 1
    fixed = [found.matches["bbox"], *map(errors.without, range(number)), errors.without_missed()]
    before, *after = (average_precision(one, len(found.classes), found.metric)["AP50"] for one in fixed)
    counts = [*((errors.kind == kind).sum() for kind in range(number)), errors.missed.sum()]
    return {kind: (ap - before, float(count)) for kind, ap, count in zip(KINDS, after, counts, strict=True)}


class _Errors:
    """The errors of one trial, and its matches at IoU 0.5 with some of them corrected.

    Attributes:
        kind: (N,) of each false positive; NONE for other detections.
        target: (N,) the object that an error of classification or localisation is about, else NONE.
        owner: (M,) the detection that found each object, else NONE.
        missed: (M,) objects that are neither found nor a target.
    """

    def __init__(self, found: Detections, objects: Floats) -> None:
        self.matches = matches = found.matches["bbox"]
        self.label = objects[:, 1].astype(np.int16)
        self.image = objects[:, 0].astype(np.int32)
        self.hit, self.ignored = matches.hit[0] & 1 > 0, matches.ignored[0] & 1 > 0
        self.kind, self.target = np.full((2, len(self.hit)), NONE)
        self.owner = np.full(len(objects), NONE)
        boxes = found.boxes[matches.detection].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        order = np.argsort(matches.image, kind="stable")  # of one image: class by class, best score first
        images = np.arange(len(found.images) + 1)
        rows, things = np.searchsorted(matches.image[order], images), np.searchsorted(self.image, images)
        for i in images[:-1]:
            here, there = order[rows[i] : rows[i + 1]], np.arange(things[i], things[i + 1])
            if len(here) and len(there):
                iou = np.asarray(rle.iou(boxes[here], objects[there, 2:].copy(), np.zeros(len(there))))
                self._classify(here, there, iou)
            else:
                self.kind[here[~(self.hit | self.ignored)[here]]] = BACKGROUND
        self.missed = self.owner == NONE
        self.missed[self.target[self.target != NONE]] = False

    def _classify(self, rows: Integers, things: Integers, iou: Floats) -> None:
        """Classify the detections `rows` of an image with the objects `things`."""
        same = self.matches.label[rows][:, None] == self.label[things]
        own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
        for place in np.flatnonzero(self.hit[rows]):
            free = self.owner[things] == NONE
            self.owner[things[np.argmax(np.where(free, own[place], -1.0))]] = rows[place]
        near, near_other = own.max(axis=1), other.max(axis=1)
        again = np.where(self.owner[things] != NONE, own, 0.0).max(axis=1) >= FOREGROUND_IOU
        nowhere = np.maximum(near, near_other) < BACKGROUND_IOU
        conditions = [~again & (near >= BACKGROUND_IOU), near_other >= FOREGROUND_IOU, again, nowhere]
        kind = np.select(conditions, [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
        kind[(self.hit | self.ignored)[rows]] = NONE
        self.kind[rows] = kind
        for about, overlap in ((LOCALISATION, own), (CLASSIFICATION, other)):
            self.target[rows[kind == about]] = things[overlap[kind == about].argmax(axis=1)]

    def without(self, kind: int) -> Matches:
        """The matches without one kind of false positive: class or box corrected, other kinds removed.

        Of several detections of an object the one with the best score remains.
        """
        wrong, owned = np.flatnonzero(self.kind == kind), np.flatnonzero(self.owner != NONE)
        label, hit, ignored = self.matches.label.copy(), self.hit.copy(), self.ignored.copy()
        if kind in (CLASSIFICATION, LOCALISATION):
            label[wrong] = self.label[self.target[wrong]]
            rows, things = np.append(self.owner[owned], wrong), np.append(owned, self.target[wrong])
            order = np.lexsort((rows, -self.matches.score[rows], things))
            rows, best = rows[order], np.diff(things[order], prepend=NONE) != 0
            hit[rows], ignored[rows] = best, ~best
        else:
            ignored[wrong] = True
        return self._matches(label, hit, ignored, np.full(len(self.owner), True))

    def without_missed(self) -> Matches:
        """The matches as if the missed objects were not annotated; a class of which none is found keeps its own."""
        others = np.bincount(self.label[~self.missed], minlength=int(self.label.max(initial=0)) + 1)
        return self._matches(self.matches.label, self.hit, self.ignored, ~self.missed | (others[self.label] == 0))

    def _matches(self, label: NDArray[np.int16], hit: Flags, ignored: Flags, kept: Flags) -> Matches:
        old, order = self.matches, np.lexsort((-self.matches.score, label))  # stable
        hits, aside = (flags[order].astype(np.uint16)[None].repeat(len(old.hit), axis=0) for flags in (hit, ignored))
        sorted_ = old.image[order], label[order], old.score[order], hits, aside, old.detection[order]
        return Matches(*sorted_, self.image[kept], self.label[kept], np.ones(int(kept.sum()), np.uint8))
