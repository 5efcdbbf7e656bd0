"""The trial's last word: `result.json`, as docs/reference/formats.md has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from common.config import dotted_keys
from common.environment import describe
from transfer.engine.config import Source
from transfer.engine.guards import images_per_statistic
from transfer.engine.weights import Weights
from transfer.tasks import heldout
from transfer.tasks.splits import find_split

FILE = "result.json"
FORMAT = "transfer-result/1"
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
    "MODEL.MASK_ON",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN",
    "TRANSFER.CLASSES",
    "TRANSFER.SPLITS",
    "TRANSFER.CHECK_COUNTS",
)
"""Keys (or their beginnings) that the protocol fixes; the learning rate, searched for each method, is none of them."""


@dataclass
class Facts:
    """What a run found out, rank 0 alone; becomes a part of the result.

    Attributes:
        guards: what the walk over the model and the proof of the weights found.
        metrics: the evaluator's answer as `metrics_of` has it; None when there is none.
        divergence: None, or iteration, lr and what is no longer finite.
        timing: seconds.
    """

    guards: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    divergence: dict[str, Any] | None = None
    timing: dict[str, Any] = field(default_factory=dict)


def result(
    cfg: CfgNode, task_cfg: CfgNode, source: Source, weights: Weights, processes: int, evaluator: str, facts: Facts
) -> dict[str, Any]:
    """The result of a trial that ended, trained or diverged.

    Args:
        cfg: the resolved config.
        task_cfg: what the config file alone says.
        source: where the config came from.
        weights: what the trial started from.
        processes: how many trained.
        evaluator: what measured.
        facts: what the run found out.
    """
    return {
        "format": FORMAT,
        "status": "diverged" if facts.divergence else "done",
        "task": cfg.TRANSFER.TASK,
        "seed": cfg.SEED,
        "toy": bool(cfg.TRANSFER.TOY),
        "metrics": facts.metrics,
        "divergence": facts.divergence,
        "comparable": comparable(cfg, task_cfg, processes),
        "settings": settings(cfg, processes, evaluator),
        "weights": weights.as_dict(),
        "config": {
            "file": str(source.file),
            "overrides": list(source.overrides),
            "overlay": None if source.overlay is None else str(source.overlay),
        },
        "guards": facts.guards,
        "environment": describe(),
        "timing": facts.timing,
    }


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
    return heldout.name_of(cfg.DATASETS.TRAIN[0]) if cfg.TRANSFER.SELECT_ON == "heldout" else str(cfg.DATASETS.TEST[0])


def comparable(cfg: CfgNode, task_cfg: CfgNode, processes: int) -> dict[str, Any]:
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
    changed = changed_protocol(cfg, task_cfg)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        reasons.append(f"the task's protocol was changed: {', '.join(changed[:3])}{more}")
    return {"ok": not reasons, "reasons": reasons}


def changed_protocol(cfg: CfgNode, task_cfg: CfgNode) -> list[str]:
    """Keys the protocol fixes and the overlay or the command line changed, with their values."""
    before, now = flat(task_cfg), flat(cfg)
    # The number of classes follows from the class list, which is among the keys itself.
    keys = [key for key in before if key.startswith(PROTOCOL) and key != "MODEL.ROI_HEADS.NUM_CLASSES"]
    return [f"{key} is {now.get(key)}, not {before[key]}" for key in keys if now.get(key) != before[key]]


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Dotted key → value."""
    found = {}
    for key in dotted_keys(cfg):
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        found[key] = list(node) if isinstance(node, tuple) else node
    return found


def exists(folder: Path) -> bool:
    """Whether the trial in `folder` has ended."""
    return (folder / FILE).is_file()
