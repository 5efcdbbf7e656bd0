"""Ten steps of our trainer on recorded batches give the losses of the original's own, and a change of recipe does not.

`make_moco_losses.py` made the numbers with facebookresearch/moco at 132aea9 and, of FPN, with WXinlong/DenseCL at
b64bbb6; `compare_moco.py` runs both at full size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moco_original
import parity_world
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks

from ssl_transfer.formats.backbone import TORCHVISION
from transfer.engine.config import load_config
from transfer.engine.detection_trainer import DetectionTrainer
from transfer.engine.guards import resolve_norm
from transfer.engine.prepare import resolve_preprocessing
from transfer.engine.trial import build_detector, build_model
from transfer.modeling import register
from transfer.tasks.classes import BENCHMARK

GOLDEN, GOLDEN_FPN = (
    json.loads(Path(__file__).with_name(f"{original}_losses.json").read_text()) for original in ("moco", "densecl")
)
GOLDEN["coco_fpn"] = GOLDEN_FPN["coco_fpn"]
TASKS = (*moco_original.CONFIGS, "coco_fpn")
CLOSE = {
    "voc0712_trainval": (*(1e-11,) * 4, 1e-10, 1e-9, 1e-8, 1e-7, 1e-5, 3e-4),
    "coco_2x": (*(1e-11,) * 5, *(1e-10,) * 2, 1e-9, 1e-8, 1e-8),
    "coco_fpn": (*(1e-11,) * 4, 1e-10, *(1e-9,) * 2, 1e-8, 1e-7, 1e-5),
}
"""Relative tolerance of each step's losses. A difference in the last bit grows about tenfold a step. Measured, largest
of all losses, by step, of MKL's branches (MKL_CBWR COMPATIBLE, AVX2, AVX512), torch's plainest kernels
(ATEN_CPU_CAPABILITY=default, ONEDNN_MAX_CPU_ISA=SSE41) and AVX2's, and two threads:
voc0712_trainval 4e-14 2e-14 2e-13 3e-13 2e-12 8e-12 2e-10 1e-9 1e-7 2e-6, coco_2x 2e-14 … 2e-12 2e-11 6e-11 2e-10,
coco_fpn 5e-14 1e-13 1e-13 1e-12 1e-12 2e-11 1e-11 2e-10 1e-9 8e-8. A change of recipe shows in the first step in which
it can: weight decay times 1.1 by 4e-10."""
TRAINED = {"voc0712_trainval": 1e-4, "coco_2x": 1e-9, "coco_fpn": 1e-6}
"""The same for the trained tensors; measured 2e-7, 1e-11 and 9e-9."""


def settled(root: Path, task: str, *words: str) -> CfgNode:
    """The config of a narrow trial from scratch, as `prepare` settles it, without data on disk."""
    loaded = load_config(root / f"configs/transfer/{task}.yaml", overrides=(*parity_world.narrow(task), *words))
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
    return record.rows, parity_world.digest(state)


def test_channels_last_changes_an_fpn_s_losses_by_rounding_alone(root: Path) -> None:
    """The memory format of configs/overlays/cpu.yaml; C4's is compared in tests/transfer/modeling."""
    cfg = settled(root, "coco_fpn", "TRANSFER.CHANNELS_LAST", "True")
    model = build_detector(cfg).double()
    model.load_state_dict(parity_world.initial_state(model))
    assert model.get_parameter("backbone.fpn_output2.weight").is_contiguous(memory_format=torch.channels_last)
    trainer = DetectionTrainer(cfg, model)
    record = moco_original.Record(1, trainer._lr)
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, trainer.scheduler), record])
    with parity_world.float64(), pytest.raises(moco_original.Enough):
        trainer.run(parity_world.batches(80, True, 1), 0)
    assert record.rows[0] == pytest.approx(GOLDEN["coco_fpn"]["steps"][0], rel=1e-10)


@pytest.mark.parametrize("task", TASKS)
def test_ten_steps_are_the_original_s(root: Path, task: str) -> None:
    rows, trained = train(settled(root, task))
    assert ("loss_mask" in rows[0]) == (task != "voc0712_trainval")
    for step, (row, golden) in enumerate(zip(rows, GOLDEN[task]["steps"], strict=True)):
        assert row == pytest.approx(golden, rel=CLOSE[task][step]), f"step {step}"
    assert trained == pytest.approx(GOLDEN[task]["trained"], rel=TRAINED[task])


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("SOLVER.BASE_LR", "0.0202"), 1),  # × 1.01
        (("SOLVER.WARMUP_ITERS", "101"), 2),  # in the first step both rates are a thousandth
        (("SOLVER.WARMUP_FACTOR", "0.0"), 1),
        (("SOLVER.MOMENTUM", "0.899"), 2),
        (("SOLVER.WEIGHT_DECAY", "0.00011"), 1),
        (("SOLVER.WEIGHT_DECAY_NORM", "0.0001"), 1),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), 0),
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), 0),  # no extra norm
        (("MODEL.RESNETS.STRIDE_IN_1X1", "True"), 0),
    ],
)
def test_a_change_of_recipe_shows(root: Path, words: tuple[str, ...], first: int) -> None:
    """Each from the step on in which it can: the first one's losses know of no learning rate."""
    check_change_shows(settled(root, "voc0712_trainval"), "voc0712_trainval", words, first)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("SOLVER.BASE_LR", "0.0202"), 1),
        (("SOLVER.WEIGHT_DECAY", "0.000025"), 1),  # SoCo's
        (("MODEL.FPN.NORM", "''"), 0),
        (("MODEL.ROI_BOX_HEAD.NUM_CONV", "3"), 0),
        (("MODEL.ROI_BOX_HEAD.NORM", "''"), 0),
        (("MODEL.ROI_MASK_HEAD.NORM", "''"), 0),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), 0),
    ],
)
def test_a_change_of_the_fpn_recipe_shows(root: Path, words: tuple[str, ...], first: int) -> None:
    check_change_shows(settled(root, "coco_fpn"), "coco_fpn", words, first)


def check_change_shows(cfg: CfgNode, task: str, words: tuple[str, ...], first: int) -> None:
    """The losses are the original's before step `first`, and not from there on."""
    cfg.merge_from_list(list(words))
    rows, _ = train(cfg)
    losses = [{name: value for name, value in row.items() if "loss" in name} for row in rows]
    golden = [{name: value for name, value in row.items() if "loss" in name} for row in GOLDEN[task]["steps"]]
    steps = zip(losses, golden, CLOSE[task], strict=True)
    same = [mine == pytest.approx(theirs, rel=close) for mine, theirs, close in steps]
    assert same.index(False) == first and not any(same[first : first + 3])


def test_the_golden_file_says_where_it_is_from() -> None:
    for golden, commit, sha256 in (
        (GOLDEN, moco_original.COMMIT, moco_original.SHA256),
        (GOLDEN_FPN, moco_original.DENSECL_COMMIT, moco_original.DENSECL),
    ):
        made_by: dict[str, Any] = golden["made_by"]
        assert made_by["commit"] == commit and made_by["sha256"] == sha256
