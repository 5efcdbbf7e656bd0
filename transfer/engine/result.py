"""The trial's result: `result.json`, as docs/reference/formats.md describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ssl_transfer.config import flatten_config
from ssl_transfer.environment import describe
from ssl_transfer.formats.results import RESULT_FILE, TRANSFER, TransferResult
from transfer.engine.guards import images_per_statistic, norm_sections
from transfer.engine.prepare import PreparedTrial
from transfer.tasks.datasets import find_split
from transfer.tasks.heldout import held_out_name

TOTAL_BATCH = 16
"""The total batch of every published row."""
PROTOCOL = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "INPUT.MIN_SIZE",
    "INPUT.MAX_SIZE",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.RPN",
    "MODEL.ROI_",
    "MODEL.BACKBONE",
    "MODEL.FPN",
    "MODEL.RESNETS.DEPTH",
    "MODEL.MASK_ON",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN",
    "TRANSFER.CLASSES",
    "TRANSFER.SPLITS",
    "TRANSFER.CHECK_COUNTS",
)
"""Keys (or their beginnings) that the protocol fixes; the learning rate, searched for each method, is none of them."""


def trial_result(
    prepared: PreparedTrial,
    *,
    guards: dict[str, Any],
    metrics: dict[str, Any] | None,
    divergence: dict[str, Any] | None,
    timing: dict[str, Any],
    detections: dict[str, Any] | None,
) -> TransferResult:
    """The result of a trial that ended, trained or diverged.

    Args:
        prepared: the trial.
        guards: what the checks of the model and of the loaded weights found.
        metrics: the evaluator's answer as `metrics_of` has it; None when there is none.
        divergence: None, or iteration, lr and what is no longer finite.
        timing: in seconds.
        detections: their file and its SHA-256; None when there is none.
    """
    cfg, request = prepared.cfg, prepared.request
    content = {
        "format": TRANSFER,
        "status": "diverged" if divergence else "done",
        "task": cfg.TRANSFER.TASK,
        "seed": cfg.SEED,
        "toy": bool(cfg.TRANSFER.TOY),
        "metrics": metrics,
        "divergence": divergence,
        "comparable": comparable(cfg, prepared.protocol, prepared.processes),
        "settings": settings(cfg, prepared.processes, prepared.evaluator),
        "weights": prepared.weights.as_dict(),
        "config": {
            "file": str(request.config_file),
            "overrides": list(request.overrides),
            "overlay": None if request.overlay is None else str(request.overlay),
        },
        "guards": guards,
        "environment": describe(),
        "timing": timing,
        **prepared.search,
        "detections": detections,
    }
    return TransferResult.parse(content, request.output / RESULT_FILE)


def settings(cfg: CfgNode, processes: int, evaluator: str) -> dict[str, Any]:
    """The settings a table shows or groups by."""
    return {
        "total_batch": cfg.SOLVER.IMS_PER_BATCH,
        "lr": cfg.SOLVER.BASE_LR,
        "iterations": cfg.SOLVER.MAX_ITER,
        "steps": list(cfg.SOLVER.STEPS),
        "warmup_iters": cfg.SOLVER.WARMUP_ITERS,
        "warmup_factor": cfg.SOLVER.WARMUP_FACTOR,
        "norm": cfg.MODEL.RESNETS.NORM,
        "precise_bn": cfg.TRANSFER.PRECISE_BN if cfg.TEST.PRECISE_BN.ENABLED else None,
        "amp": bool(cfg.SOLVER.AMP.ENABLED),
        "evaluator": evaluator,
        "metric": metric(cfg),
        "train_splits": list(cfg.DATASETS.TRAIN),
        "test_split": measured_split(cfg),
        "num_processes": processes,
        "reference_gpus": cfg.SOLVER.REFERENCE_WORLD_SIZE or None,
    }


def metric(cfg: CfgNode) -> str:
    """Whose AP it is: `voc2007` (11 points), `voc2012` (area under the curve) or `coco`."""
    split = find_split(cfg.DATASETS.TEST[0], Path(), cfg.TRANSFER.SPLITS)
    return "coco" if split.layout == "coco" else f"voc{split.year}"


def measured_split(cfg: CfgNode) -> str:
    """The split the metrics are of: the test split, or the part that a search holds out of the training images."""
    return held_out_name(cfg.DATASETS.TRAIN[0]) if cfg.TRANSFER.SELECT_ON == "heldout" else str(cfg.DATASETS.TEST[0])


def comparable(cfg: CfgNode, protocol: CfgNode, processes: int) -> dict[str, Any]:
    """Whether the result compares with the published numbers, and every reason why not.

    Neither the norm's name nor the number of GPUs is one: a single GPU that holds all 16 images compares.
    """
    reasons = []
    total = cfg.SOLVER.IMS_PER_BATCH
    if total != TOTAL_BATCH:
        reasons.append(f"total batch is {total}, not {TOTAL_BATCH}")
    covered = images_per_statistic(cfg, processes)
    if covered < total:
        reasons.append(f"normalisation statistics cover {covered} of the {total} images of a batch")
    if cfg.TRANSFER.SELECT_ON == "heldout":
        reasons.append(f"measured on {measured_split(cfg)}, not on {cfg.DATASETS.TEST[0]}")
    changed = changed_protocol(cfg, protocol)
    if changed:
        reasons.append(f"the task's protocol was changed: {'; '.join(changed)}")
    return {"ok": not reasons, "reasons": reasons}


def changed_protocol(cfg: CfgNode, protocol: CfgNode) -> list[str]:
    """Keys the protocol fixes and the overlay or the command line changed, with their values."""
    before, now = flatten_config(protocol), flatten_config(cfg)
    # The number of classes follows from the class list, which is among the keys itself. resolve_norm sets the norms
    # of all parts alike, and which of the synchronised ones or, on one GPU, plain BN it is makes no difference.
    resolved = {"MODEL.ROI_HEADS.NUM_CLASSES", *(f"{section}.NORM" for section in norm_sections(cfg))}
    keys = [key for key in before if key.startswith(PROTOCOL) and key not in resolved]
    return [f"{key} is {now.get(key)}, not {before[key]}" for key in keys if now.get(key) != before[key]]
