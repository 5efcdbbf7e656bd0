"""The class names of the two benchmarks, in the order of their category indices."""

from __future__ import annotations

from pathlib import Path

from ssl_transfer.files import expect_shape, read_json_object


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


VOC = _names("""
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
    pottedplant, sheep, sofa, train, tvmonitor
""")
"""PASCAL VOC's 20 classes, in alphabetical order as in its development kit."""

COCO = _names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
""")
"""COCO 2017's 80 classes, in the order of their category ids (which run to 90, with gaps)."""

BENCHMARK = {"voc": VOC, "coco": COCO}
"""The default class list of each layout."""

TOY_RECORD = "toy.json"
"""The file of a toy set that names its classes; it is next to the folder `detection`, the data root."""


def toy_classes(root: Path) -> tuple[str, ...]:
    """Classes of the toy set that a data root belongs to; empty where it belongs to none."""
    record = root.parent / TOY_RECORD
    if not record.is_file():
        return ()
    with expect_shape(record, "draw the toy set again"):
        return tuple(str(name) for name in read_json_object(record)["classes"])


def detection_root(root: Path) -> Path:
    """`root`, or its `detection` folder where `root` is a whole toy set."""
    return root / "detection" if (root / TOY_RECORD).is_file() else root
