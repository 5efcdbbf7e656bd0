"""Every evaluator measures what was read, whatever the annotation files look like."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import coco_cases as cases
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ssl_transfer.errors import UserError
from transfer.engine.detection_data import register_metadata
from transfer.evaluation.evaluators import build_evaluator, rehearse_evaluation
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset, read_split


def measure(name: str, dataset: Dataset, found: cases.Batches, masks: bool) -> dict[str, dict[str, float]]:
    catalog_name = register_metadata(dataset)
    rehearse_evaluation(name, dataset, catalog_name, masks)
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(cases.answer(build_evaluator(name, dataset, catalog_name, masks), found) or {})


def as_label_tools_write_it(dataset: Dataset) -> Dataset:
    """The same set, read from a file with ids as text and from 0, no iscrowd, text in `info.year`."""
    assert dataset.split.annotations is not None
    content = json.loads(dataset.split.annotations.read_text())
    content["info"] = {"year": "2024", "version": 1}
    for image in content["images"]:
        image.update(id=f"{image['id']:04d}", date_captured=0, width=float(image["width"]), license="none")
    for number, entry in enumerate(content["annotations"]):
        entry.update(id=number, image_id=f"{entry['image_id']:04d}", extra={"a": None})
        if not entry["iscrowd"]:
            del entry["iscrowd"]
    file = dataset.split.annotations.with_name("tools.json")
    file.write_bytes(json.dumps(content).encode("utf-8-sig"))
    return read_split(replace(dataset.split, annotations=file), dataset.classes)


@pytest.mark.parametrize("seed", range(4))
def test_both_coco_evaluators_measure_an_export_like_the_plain_file(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = cases.made_annotations(tmp_path, rng, images=6)
    found = cases.detections(dataset, rng, most=5, decimals=2)
    plain, export = cases.theirs(dataset, found), as_label_tools_write_it(dataset)
    assert len(export.adjustments) == 4
    for name in ("hotcoco", "pycocotools"):
        for one in (dataset, export):
            measured = measure(name, one, found, masks=True)
            for kind, values in plain.items():
                assert measured[kind] == pytest.approx(values, abs=1e-9, nan_ok=True)


def test_both_voc_evaluators_measure_records_that_xml_files_do_not_show(tmp_path: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("a\nb\n")
    for name in "ab":  # no pose, no truncated, no difficult: Detectron2's evaluator reads all three
        (tmp_path / f"JPEGImages/{name}.jpg").touch()
        box = "<xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>20</ymax>"
        (tmp_path / f"Annotations/{name}.xml").write_text(
            f"<annotation><size><width>40</width><height>30</height></size>"
            f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    dataset = read_split(Split("own", "voc", tmp_path, "test"), ("cat", "dog"))
    found = []
    for record, shift in zip(dataset.records, (0.0, 6.0), strict=True):
        instances = Instances((30, 40))
        instances.pred_boxes = Boxes(torch.tensor([[2.0 + shift, 3.0, 30.0, 20.0], [0.0, 0.0, 9.0, 9.0]]))
        instances.scores, instances.pred_classes = torch.tensor([0.9, 0.3]), torch.tensor([0, 0])
        found.append(({"image_id": record.image_id}, {"instances": instances}))
    exact, theirs = (measure(name, dataset, found, masks=False)["bbox"] for name in ("exact", "detectron2"))
    assert exact["AP50"] > 0 and exact["AP"] < 100
    for key in ("AP50", "AP75", "AP"):
        assert exact[key] == pytest.approx(theirs[key], abs=1e-9, nan_ok=True)


def test_what_an_evaluator_cannot_measure_is_named(tmp_path: Path) -> None:
    dataset = cases.made_annotations(tmp_path, np.random.default_rng(1))
    broken = replace(dataset, category_ids=(*dataset.category_ids[:-1], -7))
    with pytest.raises(UserError, match=r"instances\.json: hotcoco cannot read"):
        measure("hotcoco", broken, [], masks=False)
