"""Result folders made to order, as the other rooms write them (docs/reference/formats.md)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssl_transfer.formats.detections import Detections, Matches

NO_MATCHES = Matches(
    image=np.zeros(0, np.int32),
    label=np.zeros(0, np.int16),
    score=np.zeros(0),
    hit=np.zeros((4, 0), np.uint16),
    ignored=np.zeros((4, 0), np.uint16),
    detection=np.zeros(0, np.int32),
    object_image=np.zeros(0, np.int32),
    object_label=np.zeros(0, np.int16),
    object_area=np.zeros(0, np.uint8),
)
SPLITS = {
    "voc07": (["voc_2007_trainval"], "voc_2007_test", 9000),
    "voc0712": (["voc_2007_trainval", "voc_2012_train"], "voc_2007_test", 24000),
    "voc0712_trainval": (["voc_2007_trainval", "voc_2012_trainval"], "voc_2007_test", 24000),
    "coco": (["coco_2017_train"], "coco_2017_val", 90000),
    "coco_fpn": (["coco_2017_train"], "coco_2017_val", 90000),
}
SHA = {"scratch": None, "supervised": "a" * 64, "simsiam": "b" * 64}
ENVIRONMENT = {
    "python": "3.11.7",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "detectron2": "0.6",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "host": "node1",
    "devices": ["Example GPU"] * 8,
}


JOB_STATE = {
    "format": "job/1",
    "name": "finetune",
    "fingerprint": "01234567" + 56 * "0",
    "executor": "local",
    "attempts": 1,
    "started": "2026-01-01T00:00:00.000+00:00",
}


def result(row: str, task: str, seed: int, box: list[float], mask: list[float] | None = None, **changes: Any) -> dict:
    """A finished trial's result.json; `box` and `mask` are AP50, AP, AP75. `a__b=value` changes a nested field."""
    train, test, iterations = SPLITS.get(task, (["own_train"], "own_test", 1000))
    metrics = {"bbox": _branch(box)}
    if mask:
        metrics["segm"] = _branch(mask)
    manifest = {
        "format": "manifest/1",
        "source": {"path": f"{row}.pth", "sha256": "c" * 64, "layout": "backbone/1"},
        "origin": {"method": row, "recipe": f"{row}_r50_200ep", "epochs": 200, "commit": "fedcba"},
    }
    made: dict[str, Any] = {
        "format": "transfer-result/1",
        "status": "done",
        "task": task,
        "seed": seed,
        "toy": False,
        "metrics": metrics,
        "divergence": None,
        "comparable": {"ok": True, "reasons": []},
        "settings": {
            "total_batch": 16,
            "lr": 0.02,
            "iterations": iterations,
            "steps": [iterations * 3 // 4, iterations * 11 // 12],
            "warmup_iters": 100,
            "norm": "naiveSyncBN",
            "precise_bn": "synchronised",
            "amp": False,
            "evaluator": "voc" if "voc" in task else "coco",
            "train_splits": train,
            "test_split": test,
            "num_processes": 8,
            "reference_gpus": None,
        },
        "weights": {
            "name": row,
            "path": None if row == "scratch" else f"{row}.pkl",
            "sha256": SHA.get(row, "d" * 64),
            "manifest": None if row == "scratch" else manifest,
        },
        "config": {"file": f"configs/transfer/{task}.yaml", "overrides": [], "overlay": None},
        "guards": {"weights_loaded": "265/265 exact", "extra_norm": True, "frozen": 0},
        "environment": copy.deepcopy(ENVIRONMENT),
        "timing": {"train_seconds": 3600.0, "eval_seconds": 180.0, "seconds_per_iteration": 0.4},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        section = made
        for part in path:
            section = section[part]
        section[last] = value
    return made


def diverged(row: str, task: str, seed: int, **changes: Any) -> dict:
    """A diverged trial's result.json."""
    made = result(row, task, seed, [0, 0, 0], **changes)
    return {
        **made,
        "status": "diverged",
        "metrics": {},
        "divergence": {"iteration": 120, "lr": 0.02, "what": "loss_rpn_cls is NaN"},
    }


def _branch(values: list[float]) -> dict[str, Any]:
    ap50, ap, ap75 = values
    return {"AP": ap, "AP50": ap50, "AP75": ap75, "per_class": {"cat": ap + 1, "dog": ap - 1, "sofa": None}}


def resampled(center: float, own: int = 0, *, noise: float = 0.5, extra: float = 0.1) -> np.ndarray:
    """A trial's AP on 2,000 resampled test sets: `noise` is shared by all trials, `extra` its own (generator `own`)."""
    shared, alone = (np.random.default_rng([seed, 18]).standard_normal(2000) for seed in (0, 1 + own))
    return center + noise * shared + extra * alone


def keep(folder: Path, content: dict, own: int = 0, name: str = "detections.safetensors", **changes: Any) -> dict:
    """Write a file of detections into `folder` that has none; the result that names it. `changes` are its fields."""
    empty = {"image": np.zeros(0, np.int32), "label": np.zeros(0, np.int16), "score": np.zeros(0, np.float32)}
    metrics = {b: {m: v[m] for m in ("AP", "AP50", "AP75")} for b, v in content["metrics"].items() if v}
    noise = {key: changes.pop(key) for key in ("noise", "extra") if key in changes}
    fields: dict[str, Any] = {
        "images": ("1", "2"),
        "classes": ("cat", "dog", "sofa"),
        "metric": "voc2007" if "voc" in content["task"] else "coco",
        "test_split": content["settings"]["test_split"],
        "truth": "e" * 64,
        "toy": content["toy"],
        "boxes": np.zeros((0, 4), np.float32),
        "matches": dict.fromkeys(metrics, NO_MATCHES),
        "resamples": {b: {m: resampled(v, own, **noise) for m, v in one.items()} for b, one in metrics.items()},
        "draws": "d" * 64,
    }
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = Detections(**{**empty, **fields, **changes}).write(folder / name)
    return {**content, "detections": {"file": name, "sha256": sha256}}


def put(folder: Path, content: dict | str) -> Path:
    """Write a result.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class Run:
    """An experiment's run folder under construction; `save` writes its graph.json."""

    def __init__(self, folder: Path, rows: list[tuple[str, str, str | None]], tasks: dict[str, int]) -> None:
        self.folder = folder
        self.graph: dict[str, Any] = {
            "format": "graph/1",
            "experiment": "made",
            "source": "",
            "rows": [{"key": key, "label": label, "expected": expected} for key, label, expected in rows],
            "tasks": [{"key": key, "trials": trials} for key, trials in tasks.items()],
            "jobs": [],
        }

    def finetune(self, row: str, task: str, seed: int, content: dict | str | None, **state: Any) -> Path:
        """A fine-tuning job with its result, or (content None) with only its job.json, or without even that."""
        folder = self._job(f"finetune.{row}.{task}.s{seed}", "finetune", row=row, task=task, seed=seed)
        if content is not None:
            put(folder, content)
        if state:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(json.dumps({**JOB_STATE, **state}))
        return folder

    def pretrain(self, row: str, content: dict | None, lines: list[dict]) -> Path:
        """A pre-training job with its metrics and, when finished, its result."""
        folder = self._job(f"pretrain.{row}", "pretrain", row=row)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if content is not None:
            put(folder, content)
        return folder

    def _job(self, name: str, kind: str, **facts: Any) -> Path:
        folder = f"jobs/{name}-01234567"
        job = {"name": name, "kind": kind, "fingerprint": "01234567" + 56 * "0", "dir": folder, **facts}
        self.graph["jobs"].append(job)
        return self.folder / folder

    def save(self) -> Path:
        """Write graph.json; returns the run folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "graph.json").write_text(json.dumps(self.graph))
        return self.folder


def pretrain_result(**changes: Any) -> dict:
    """A finished pre-training run's result.json."""
    return {
        "format": "pretrain-result/1",
        "status": "done",
        "method": "simsiam",
        "arch": "resnet50",
        "epochs": 200,
        "iterations": 2000,
        "dim": 2048,
        "final": {"loss": -0.9, "std": 0.0215},
        "backbone": "backbone.safetensors",
        "backbone_sha256": "e" * 64,
        "toy": False,
        "seconds": 7200.0,
        "environment": copy.deepcopy(ENVIRONMENT),
        **changes,
    }


def pretrain_lines(count: int = 100) -> list[dict]:
    """Metrics lines of a healthy run."""
    return [
        {
            "iteration": 20 * i,
            "epoch": i // 5,
            "loss": -0.9 * i / count,
            "std": 0.0221 * (1 - 0.5 / (i + 1)),
            "lr": 0.05,
            **({"knn_top1": 60.0 * i / count} if i % 10 == 9 else {}),
        }
        for i in range(count)
    ]


FIVE = (-0.2, -0.1, 0.0, 0.1, 0.2)
"""Offsets of five trials: their mean is 0 and their sample std is the root of 0.025."""


def whole(folder: Path) -> Path:
    """A run folder with everything in it: complete, incomplete, diverged, mixed and broken cells, and pre-training."""
    rows = [("scratch", "scratch", "scratch"), ("supervised", "ImageNet supervised", "supervised")]
    rows += [("simsiam", "SimSiam, base", "simsiam_base")]
    run = Run(folder, rows, {"voc07": 5, "voc0712": 5, "coco": 1})
    means = {"scratch": [36.0, 17.0, 13.0], "supervised": [74.5, 42.5, 42.7], "simsiam": [75.6, 47.1, 50.0]}
    for row, values in means.items():
        for seed, offset in enumerate(FIVE, 1):
            run.finetune(row, "voc07", seed, result(row, "voc07", seed, [v + offset for v in values]))
    for seed in (1, 2, 3):
        run.finetune("scratch", "voc0712", seed, result("scratch", "voc0712", seed, [60.0 + seed, 33.0 + seed, 33.0]))
    run.finetune("scratch", "voc0712", 4, None, status="failed", error="OSError: disk full")
    run.finetune("scratch", "voc0712", 5, '{"format": "transfer-result/1", "sta')
    for seed in (1, 2, 3, 4):
        run.finetune("supervised", "voc0712", seed, result("supervised", "voc0712", seed, [81.0, 53.0, 58.0]))
    run.finetune("supervised", "voc0712", 5, diverged("supervised", "voc0712", 5))
    for seed in (1, 2, 3, 4, 5):
        lr = 0.02 if seed < 4 else 0.1
        run.finetune(
            "simsiam", "voc0712", seed, result("simsiam", "voc0712", seed, [82.0, 56.0, 62.0], settings__lr=lr)
        )
    for row, box in {"scratch": [44.0, 26.4, 27.8], "supervised": [58.0, 38.0, 41.0]}.items():
        run.finetune(row, "coco", 1, result(row, "coco", 1, box, [46.9, 29.3, 30.8]))
    off = {"ok": False, "reasons": ["total batch is 8, not 16"]}
    folder = run.finetune(
        "simsiam",
        "coco",
        1,
        result("simsiam", "coco", 1, [57.0, 37.0, 40.0], [54.0, 33.0, 35.0], comparable=off, settings__total_batch=8),
    )
    (folder / "metrics.json").write_text(
        "".join(json.dumps({"iteration": 20 * i, "total_loss": 3 / (i + 1)}) + "\n" for i in range(50))
    )
    run.pretrain("simsiam", pretrain_result(), pretrain_lines())
    return run.save()
