"""Comparisons of fine-tuning with MoCo's and DenseCL's detection code, and of the evaluators with Detectron2's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.compare_table import close_values
from tests.parity.comparison import Check, Outcome, Sources

SEEDS = 12
"""Random sets that each evaluator is given."""


def moco_voc(sources: Sources) -> Outcome:
    """Two steps on VOC."""
    return _steps(sources, task="voc0712_trainval")


def moco_voc_two(sources: Sources) -> Outcome:
    """The same in two processes: naiveSyncBN, DistributedDataParallel, each rank's images."""
    return _steps(sources, task="voc0712_trainval", processes=2)


def moco_coco(sources: Sources) -> Outcome:
    """Two steps of Mask R-CNN on COCO."""
    return _steps(sources, task="coco_2x")


def densecl_voc(sources: Sources) -> Outcome:
    """Two steps of DenseCL's trainer on VOC."""
    return _steps(sources, task="voc0712_trainval", original="densecl")


def _steps(sources: Sources, **words: Any) -> Outcome:
    from tests.transfer.parity.compare_moco import Setting, Sides

    setting = Setting(sources.files[0], drawn_data(sources.scratch / "data"), steps=2, order=6, **words)
    sides = Sides(sources.scratch, setting)
    sides.run_ours("ours")
    sides.run_theirs("ours")
    sides.run_ours("spoilt", bn_momentum=0.11)
    return Outcome(sides.compare("ours")[1], sides.compare("spoilt")[1], "BN momentum 0.11")


def drawn_data(folder: Path) -> Path:
    """VOC2007, VOC2012 and coco of a few drawn images, coco with all 80 categories of its benchmark."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    from transfer.toy.build import Size, build_toy_sets

    build_toy_sets(folder / "toy", size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(12, 8)))
    data = (folder / "toy/detection").rename(folder / "detection")  # away from what marks it as made for show
    listed = [{"id": entry["id"], "name": entry["name"]} for entry in COCO_CATEGORIES if entry["isthing"]]
    for file in (data / "coco/annotations").glob("instances_*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "categories": listed}))
    return data


def voc_evaluator(sources: Sources) -> Outcome:
    """AP, AP50 and AP75 of random detections beside Detectron2's PASCAL evaluator."""
    import pytest
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    from tests.transfer.evaluation import test_voc_metric as cases
    from transfer.engine.detection_data import register_metadata
    from transfer.evaluation.voc_evaluator import VOCEvaluator

    keys, theirs, ours, spoilt = ("AP", "AP50", "AP75"), {}, {}, {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        dataset = cases.make_set(sources.scratch / f"{seed}", rng, images=10, year=(2007, 2012)[seed % 2])
        found = cases.detections(rng, dataset, most=6, decimals=(1, 2, 6)[seed % 3])
        theirs[seed] = cases.measure(PascalVOCDetectionEvaluator(register_metadata(dataset)), found)
        ours[seed] = cases.measure(VOCEvaluator(dataset), found)
        with pytest.MonkeyPatch.context() as patch:
            cases.difficult_counts(patch)
            spoilt[seed] = cases.measure(VOCEvaluator(dataset), found)
    change = "difficult objects count"
    return Outcome(_digits(ours, theirs, keys), _digits(spoilt, theirs, keys), change)


def coco_evaluator(sources: Sources) -> Outcome:
    """Every number of boxes and masks beside Detectron2's evaluator with pycocotools."""
    from tests.transfer.evaluation import coco_cases as cases

    theirs, ours, spoilt = {}, {}, {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        dataset = cases.made_annotations(sources.scratch / f"{seed}", rng, images=8)
        found = cases.detections(dataset, rng, most=4, decimals=(1, 2, 6)[seed % 3])
        theirs[seed], ours[seed] = cases.theirs(dataset, found), cases.ours(dataset, found)
        for _, output in found:
            output["instances"].pred_boxes.tensor[:, 2:] += 1
        spoilt[seed] = cases.ours(dataset, found)
    return Outcome(_digits(ours, theirs), _digits(spoilt, theirs), "boxes a pixel larger")


def _digits(ours: Any, theirs: Any, keys: tuple[str, ...] | None = None) -> list[Check]:
    """Metrics by set; NaN, which both give to a class without objects, counts as −1."""

    def numbers(found: Any) -> Any:
        if isinstance(found, dict):
            wanted = {key: value for key, value in found.items() if not keys or isinstance(key, int) or key in keys}
            return {key: numbers(value) for key, value in sorted(wanted.items())}
        return -1.0 if np.isnan(found) else found

    return [close_values("metrics", numbers(ours), numbers(theirs), 1e-9, floor=1.0)]
