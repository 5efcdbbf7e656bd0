"""Benchmarks of transfer: the start of its command lines, a conversion, an evaluation; each at several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.isolated import CALL, Benchmark, Work

TOOLS = ("compare", "convert", "data", "doctor", "launch", "lr_search", "table", "transfer")
PER_IMAGE = 50
"""Detections in an image of the generated COCO sets."""


def benchmarks() -> Iterator[Benchmark]:
    """All of them. The functions named here prepare their inputs in the process that is measured."""
    for tool in TOOLS:
        yield Benchmark(f"{tool}.py --help, cold", (f"tools/{tool}.py", "--help"), 1, "starts", "usage:")
    for jobs in (10, 100, 1000, 3000):
        file = f"{{folder}}/jobs{jobs}.yaml"
        made = _experiment(jobs)
        yield Benchmark("launch.py plan, cold", ("tools/launch.py", "plan", file), jobs, "jobs", f"s{jobs} ", made)
        yield Benchmark("launch.py status, cold", ("tools/launch.py", "status", file), jobs, "jobs", f"s{jobs} ", made)
    for trials in (10, 100):
        command = ("tools/table.py", f"{{folder}}/trials{trials}", "--format", "md")
        yield Benchmark("table.py, cold", command, trials, "trials", f"| {trials} ", _trials(trials))
    page = ("tools/table.py", "{folder}/rows2000", "--output", "{folder}/rows.html")
    yield Benchmark("table.py, one page, cold", page, 2000, "rows of a trial", "wrote", _rows(2000))
    yield Benchmark(
        "convert.py, with its proof",
        ("tools/convert.py", "{folder}/r50.pth", "{folder}/r50.pkl"),
        1,
        "files",
        "265",
        _weights,
    )
    for count in (8, 32):
        call = (CALL, "benchmarks.transfer_commands:mapped", str(count), "{folder}")
        yield Benchmark("a loader process: images for fine-tuning on VOC", call, count, "images", f"{count} images")
    for metric, images in (("voc2007", 4952), ("coco", 5000)):
        call = (CALL, "benchmarks.comparison:compared", metric, str(images))
        yield Benchmark(f"2,000 resamples of a pair, {metric}", call, images, "images", "ΔAP")
    for images in (100, 400, 1600):
        for kind in ("boxes", "masks"):
            name, count = f"COCO evaluation, {kind}", images * PER_IMAGE
            words = (CALL, "benchmarks.transfer_commands:evaluated", str(images), kind, "{folder}")
            yield Benchmark(name, words, count, "detections", f"{count} detections")


def _experiment(jobs: int) -> Callable[[Path], None]:
    """Write an experiment of scratch on VOC07 with `jobs` trials, as `submit` leaves it before the first one starts."""

    def prepare(folder: Path) -> None:
        from transfer.experiment.commands import Tools
        from transfer.experiment.load import load_experiment
        from transfer.experiment.stages import build_graph

        task = {"config": "configs/transfer/voc07.yaml", "trials": jobs}
        content = {
            "name": f"jobs{jobs}",
            "run_dir": str(folder / f"run{jobs}"),
            "data": {"detection": str(folder)},
            "rows": {"scratch": {"label": "scratch", "scratch": True}},
            "tasks": {"voc07": task},
            "seeds": list(range(1, jobs + 1)),
        }
        file = folder / f"jobs{jobs}.yaml"
        file.write_text(json.dumps(content))  # JSON is YAML
        build_graph(*load_experiment(file)).write(folder / f"run{jobs}", Tools())

    return prepare


def _trials(count: int) -> Callable[[Path], None]:
    """Write finished trials of scratch on VOC07, as `tools/table.py` reads them."""

    def prepare(folder: Path) -> None:
        for seed in range(1, count + 1):
            file = folder / f"trials{count}" / f"s{seed}" / "result.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(_result(seed)))

    return prepare


def _rows(count: int) -> Callable[[Path], None]:
    """Write a finished trial with AP per class and curves for each of many rows."""

    def prepare(folder: Path) -> None:
        line = '{{"iteration": {}, "total_loss": 1.5, "lr": 0.02}}\n'
        curve = "".join(line.format(20 * i) for i in range(450))
        for row in range(count):
            content = _result(1)
            content["weights"] |= {"name": f"row{row}", "sha256": f"{row:064x}"}
            content["metrics"]["bbox"]["per_class"] = {f"class {i}": 40.0 + i for i in range(20)}
            file = folder / f"rows{count}" / f"row{row}" / "result.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))
            (file.parent / "metrics.json").write_text(curve)

    return prepare


def _result(seed: int) -> dict[str, Any]:
    splits = {"train_splits": ["voc_2007_trainval"], "test_split": "voc_2007_test"}
    return {
        "format": "transfer-result/1",
        "status": "done",
        "task": "voc07",
        "seed": seed,
        "toy": False,
        "metrics": {"bbox": {"AP": 16.8, "AP50": 35.9, "AP75": 13.0 + seed / 1000, "per_class": {}}},
        "divergence": None,
        "comparable": {"ok": True, "reasons": []},
        "settings": {"total_batch": 16, "lr": 0.02, "iterations": 9000, "metric": "voc2007", **splits},
        "weights": {"name": "scratch", "path": None, "sha256": None, "manifest": None},
        "config": {"file": "voc07.yaml", "overrides": [], "overlay": None},
        "guards": {"weights_loaded": "scratch"},
        "environment": {},
        "timing": {"train_seconds": 1.0, "eval_seconds": 1.0, "seconds_per_iteration": 1.0},
    }


def _weights(folder: Path) -> None:
    """Write a ResNet-50 in torchvision's layout and remove an earlier conversion."""
    import torch
    import torchvision

    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "r50.pth")
    (folder / "r50.pkl").unlink(missing_ok=True)


def mapped(count: str, folder: str) -> Work:
    """Read, decode, resize to 480 … 800 and flip `count` images of VOC's size, as one loader process does."""
    import numpy as np
    import torch
    from detectron2.data import DatasetMapper
    from detectron2.structures import BoxMode
    from PIL import Image

    from ssl_transfer.environment import ROOT
    from transfer.engine.config import load_config
    from transfer.engine.detection_data import MappedBatches
    from transfer.engine.seeding import AUGMENT

    torch.set_num_threads(1)
    cfg = load_config(ROOT / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", "cpu")).cfg
    coarse = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    file = Path(folder) / "photo.jpg"
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=95)
    thing = {"category_id": 0, "bbox": [10.0, 20.0, 200.0, 300.0], "bbox_mode": BoxMode.XYXY_ABS}
    image = {"file_name": str(file), "image_id": "photo", "height": 375, "width": 500, "annotations": [thing]}
    mapper = DatasetMapper(cfg, is_train=True)
    batches = MappedBatches([image], mapper, (0, AUGMENT, 0))
    return lambda: f"{len(batches[0, [0] * int(count)])} images"


def evaluated(images: str, kind: str, folder: str) -> Work:
    """Compute COCO's metric of detections in memory; the annotation file is read, masks are encoded."""
    from benchmarks.evaluators import random_coco, random_coco_detections
    from transfer.evaluation.coco_evaluator import HotCOCOEvaluator

    masks = kind == "masks"
    dataset = random_coco(Path(folder) / f"coco_{images}_{kind}", int(images))
    found = random_coco_detections(dataset, PER_IMAGE, masks)

    def work() -> str:
        evaluator = HotCOCOEvaluator(dataset, masks)
        for image, output in found:
            evaluator.process([image], [output])
        answer = evaluator.evaluate()
        assert answer is not None
        return f"{len(found) * PER_IMAGE} detections, AP {answer['segm' if masks else 'bbox']['AP']:.4f}"

    return work
