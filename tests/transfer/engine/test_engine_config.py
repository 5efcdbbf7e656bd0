"""Every task's resolved config against the protocol's numbers, and what a wrong config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from ssl_transfer.config import flatten_config
from ssl_transfer.errors import UserError
from transfer.engine.config import EVALUATORS, defaults, evaluator_name, load_config
from transfer.tasks.classes import COCO, VOC
from transfer.tasks.datasets import PUBLISHED

# PROTOCOL, section 2, as data. What all tasks share (facebookresearch/moco, detection/configs/Base-RCNN-C4-BN.yaml):
BASE = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    # "Detectron2's defaults for the rest", those that the protocol names:
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 1 / 1000,
    "INPUT.MIN_SIZE_TEST": 800,
}
# The same of the FPN tasks (WXinlong/DenseCL b64bbb6, benchmarks/detection/configs/{Base-RCNN-FPN,R_50_FPN_1x}.yaml):
FPN_BASE = {key: value for key, value in BASE.items() if key not in ("MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.NORM")} | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    **{f"MODEL.{part}.NORM": "SyncBN" for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")},
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
FROZEN = {"voc0712_frozen": 4, "coco_frozen": 4, "coco_fpn_frozen": 5}
VOC_SCALES, COCO_SCALES = tuple(range(480, 801, 32)), tuple(range(640, 801, 32))
# task: mask, training splits, test split, iterations, steps, warm-up, scales, classes
TASKS: dict[str, tuple[bool, list[str], str, int, tuple[int, ...], int, tuple[int, ...], int]] = {
    "voc07": (False, ["voc_2007_trainval"], "voc_2007_test", 9000, (6750, 8250), 100, VOC_SCALES, 20),
    "voc07_vissl": (False, ["voc_2007_trainval"], "voc_2007_test", 12500, (9500,), 100, VOC_SCALES, 20),
    "voc0712": (
        False,
        ["voc_2007_trainval", "voc_2012_train"],
        "voc_2007_test",
        24000,
        (18000, 22000),
        100,
        VOC_SCALES,
        20,
    ),
    "voc0712_trainval": (
        False,
        ["voc_2007_trainval", "voc_2012_trainval"],
        "voc_2007_test",
        24000,
        (18000, 22000),
        100,
        VOC_SCALES,
        20,
    ),
    "coco": (True, ["coco_2017_train"], "coco_2017_val", 90000, (60000, 80000), 1000, COCO_SCALES, 80),
    "coco_2x": (True, ["coco_2017_train"], "coco_2017_val", 180000, (120000, 160000), 1000, COCO_SCALES, 80),
}
TASKS |= {"voc07_fpn": TASKS["voc07"], "voc0712_fpn": TASKS["voc0712"]}
TASKS |= {"coco_fpn": TASKS["coco"], "coco_fpn_2x": TASKS["coco_2x"]}
TASKS |= {name: TASKS[name.removesuffix("_frozen")] for name in FROZEN}
CPU = ("MODEL.DEVICE", "cpu")


def resolved(root: Path, task: str, *words: str) -> CfgNode:
    return load_config(root / f"configs/transfer/{task}.yaml", overrides=(*CPU, *words)).cfg


def test_there_is_one_config_for_each_task(root: Path) -> None:
    files = {file.stem for file in (root / "configs/transfer").glob("*.yaml")}
    assert files == {*TASKS, "base_rcnn_c4", "base_rcnn_fpn"}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_the_protocol_over_detectron2_s_defaults(root: Path, task: str) -> None:
    mask, train, test, iterations, steps, warmup, scales, classes = TASKS[task]
    expected: dict[str, Any] = {
        **(FPN_BASE if "fpn" in task else BASE),
        "MODEL.BACKBONE.FREEZE_AT": FROZEN.get(task, 0),
        "TRANSFER.TASK": task,
        "MODEL.MASK_ON": mask,
        "DATASETS.TRAIN": tuple(train),
        "DATASETS.TEST": (test,),
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": steps,
        "SOLVER.WARMUP_ITERS": warmup,
        "INPUT.MIN_SIZE_TRAIN": scales,
        "MODEL.DEVICE": "cpu",
    }
    as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()}
    assert flatten_config(resolved(root, task)) == {**flatten_config(defaults()), **as_lists}
    assert len({"voc": VOC, "coco": COCO}[PUBLISHED[test].layout]) == classes


def test_the_scales_are_those_of_the_papers() -> None:
    assert VOC_SCALES == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert COCO_SCALES == (640, 672, 704, 736, 768, 800)


@pytest.mark.parametrize("overlay", ["cpu"])
def test_the_overlay_marks_results_as_toy(root: Path, overlay: str) -> None:
    file, over = root / "configs/transfer/coco.yaml", root / f"configs/overlays/{overlay}.yaml"
    loaded = load_config(file, over, ("SOLVER.MAX_ITER", "7"))
    assert loaded.cfg.TRANSFER.TOY and loaded.cfg.MODEL.DEVICE == "cpu" and loaded.cfg.SOLVER.MAX_ITER == 7
    assert loaded.protocol.SOLVER.MAX_ITER == 90000 and not loaded.protocol.TRANSFER.TOY
    assert loaded.set_keys["SOLVER.MAX_ITER"] == "command line"
    assert f"{overlay}.yaml, line " in loaded.set_keys["TRANSFER.TOY"]
    assert "coco.yaml, line " in loaded.set_keys["TRANSFER.TASK"]


def test_an_fpn_takes_its_own_section_of_an_overlay_and_c4_does_not(root: Path) -> None:
    sizes = {
        task: load_config(root / f"configs/transfer/{task}.yaml", root / "configs/overlays/cpu.yaml").cfg
        for task in ("coco", "coco_fpn")
    }
    assert list(sizes["coco"].MODEL.ANCHOR_GENERATOR.SIZES) == [[16, 32, 64, 128]]
    assert list(sizes["coco_fpn"].MODEL.ANCHOR_GENERATOR.SIZES) == [[8], [16], [32], [64], [128]]
    assert {cfg.INPUT.MIN_SIZE_TEST for cfg in sizes.values()} == {112}


@pytest.mark.parametrize("depth", ["18", "34"])
def test_a_resnet_of_basic_blocks_has_an_fpn_and_no_c4(root: Path, depth: str) -> None:
    assert resolved(root, "coco_fpn", "MODEL.RESNETS.DEPTH", depth).MODEL.RESNETS.RES2_OUT_CHANNELS == 64
    with pytest.raises(UserError, match=r"MODEL\.RESNETS\.DEPTH .*bottleneck blocks only; use an FPN task"):
        resolved(root, "coco", "MODEL.RESNETS.DEPTH", depth)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SOLVER.BASE_LRR", "1"), "unknown key 'SOLVER.BASE_LRR'; did you mean SOLVER.BASE_LR"),
        (("SOLVER.BASE_LR",), "'SOLVER.BASE_LR' has no partner"),
        (("SOLVER.MAX_ITER", "many"), "SOLVER.MAX_ITER must be of type int"),
        (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER must be at least 1"),
        (("TRANSFER.PRECISE_BN", "fvcor"), "did you mean fvcore?"),
        (("TRANSFER.ROI_ALIGN", "separabel"), "TRANSFER.ROI_ALIGN: 'separabel'; did you mean separable?"),
        (("TRANSFER.TASK", "''"), r"TRANSFER.TASK is empty"),
        (("DATASETS.TEST", "('voc_2007_test', 'voc_2007_val')"), "DATASETS.TEST must list exactly one"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), "only TrainingSampler is replayed"),
        (("SOLVER.AMP.ENABLED", "True"), "SOLVER.AMP.ENABLED needs a GPU"),
        (("TRANSFER.ORDER_OF_WORKERS", "2"), "command line: TRANSFER.ORDER_OF_WORKERS no longer exists"),
        (("TRANSFER.KEEP_CHECKPOINTS", "0"), "KEEP_CHECKPOINTS must be at least 1"),
    ],
)
def test_a_wrong_value_is_named(root: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(root, "voc07", *words)


def test_without_a_gpu_the_protocol_s_config_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"MODEL.DEVICE is cuda, but torch finds no GPU"):
        load_config(root / "configs/transfer/voc07.yaml")


def test_evaluators_belong_to_a_layout(root: Path) -> None:
    cfg = resolved(root, "voc07", "TRANSFER.EVALUATOR", "detectron2")
    assert evaluator_name(cfg, "voc") == "detectron2"
    with pytest.raises(UserError, match="'detectron2' does not measure the layout coco; valid: hotcoco, pycocotools"):
        evaluator_name(cfg, "coco")
    assert [evaluator_name(resolved(root, "voc07"), layout) for layout in EVALUATORS] == ["exact", "hotcoco"]
