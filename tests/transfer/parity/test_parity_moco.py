"""Ten steps of our trainer on recorded batches give the losses of the original's own, and a change of recipe does not.

`make_moco_losses.py` made the numbers with facebookresearch/moco at 132aea9; `compare_moco.py` runs both at full size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moco_original
import parity_world
import pytest
from detectron2.config import CfgNode
from detectron2.engine import hooks

from transfer.engine.config import load_config
from transfer.engine.detection_trainer import DetectionTrainer
from transfer.engine.guards import resolve_norm
from transfer.engine.prepare import resolve_preprocessing
from transfer.engine.trial import build_model
from transfer.modeling import register
from transfer.tasks.classes import BENCHMARK
from transfer.weights.canonical import TORCHVISION

GOLDEN = json.loads(Path(__file__).with_name("moco_losses.json").read_text())
TASKS = tuple(moco_original.CONFIGS)
CLOSE = 1e-8
"""Relative. Another order of summation (two threads) moves a loss of the tenth step by 1e-12."""


def settled(root: Path, task: str, *words: str) -> CfgNode:
    """The config of a narrow trial from scratch, as `prepare` settles it, without data on disk."""
    loaded = load_config(root / f"configs/transfer/{task}.yaml", overrides=(*parity_world.NARROW, *words))
    cfg = loaded.cfg
    cfg.SEED, cfg.MODEL.ROI_HEADS.NUM_CLASSES = parity_world.SEED, len(BENCHMARK["coco" if "coco" in task else "voc"])
    resolve_norm(cfg, 1)
    resolve_preprocessing(cfg, TORCHVISION, loaded.set_keys)
    return cfg


def train(cfg: CfgNode) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Losses of ten steps and what the detector is after them."""
    register()
    model = build_model(cfg).double()
    model.load_state_dict(parity_world.initial_state(model))
    trainer = DetectionTrainer(cfg, model)
    record = moco_original.Record(parity_world.STEPS, trainer._lr)
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, trainer.scheduler), record])
    batches = parity_world.batches(cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON)
    with parity_world.float64(), pytest.raises(moco_original.Enough):
        trainer.run(batches, 0)
    state = model.state_dict()
    return record.rows, parity_world.digest(state) if "roi_heads.res5.norm.weight" in state else {}


def flat(rows: list[dict[str, float]]) -> dict[str, float]:
    return {f"step {step} {name}": value for step, row in enumerate(rows) for name, value in row.items()}


@pytest.mark.parametrize("task", TASKS)
def test_ten_steps_are_the_original_s(root: Path, task: str) -> None:
    rows, trained = train(settled(root, task))
    assert ("loss_mask" in rows[0]) == (task == "coco_2x")
    assert flat(rows) == pytest.approx(flat(GOLDEN[task]["steps"]), rel=CLOSE)
    assert trained == pytest.approx(GOLDEN[task]["trained"], rel=CLOSE)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("SOLVER.BASE_LR", "0.0202"), 1),  # × 1.01
        (("SOLVER.WARMUP_ITERS", "101"), 2),  # in the first step both rates are a thousandth
        (("SOLVER.WARMUP_FACTOR", "0.0"), 1),
        (("SOLVER.MOMENTUM", "0.899"), 2),
        (("SOLVER.WEIGHT_DECAY", "0.00011"), 2),
        (("SOLVER.WEIGHT_DECAY_NORM", "0.0001"), 2),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), 0),
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), 0),  # no extra norm
        (("MODEL.RESNETS.STRIDE_IN_1X1", "True"), 0),
    ],
)
def test_a_change_of_recipe_shows(root: Path, words: tuple[str, ...], first: int) -> None:
    """Each from the step on in which it can: the first one's losses know of no learning rate."""
    task = "voc0712_trainval"
    cfg = settled(root, task)
    cfg.merge_from_list(list(words))
    rows, _ = train(cfg)
    losses = [{name: value for name, value in row.items() if "loss" in name} for row in rows]
    golden = [{name: value for name, value in row.items() if "loss" in name} for row in GOLDEN[task]["steps"]]
    same = [mine == pytest.approx(theirs, rel=CLOSE) for mine, theirs in zip(losses, golden, strict=True)]
    assert same.index(False) == first and not all(same[first:])


def test_the_golden_file_says_where_it_is_from() -> None:
    made_by: dict[str, Any] = GOLDEN["made_by"]
    assert made_by["commit"] == moco_original.COMMIT and made_by["sha256"] == moco_original.SHA256
