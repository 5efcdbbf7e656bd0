"""The detector of each task: the parts of MoCo's own, the extra norm where it belongs, one registration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from torch import nn

from ssl_transfer.errors import UserError
from transfer.engine.config import load_config
from transfer.engine.guards import check_model, resolve_norm
from transfer.modeling import register
from transfer.modeling.roi_heads import NAME, Res5ROIHeadsExtraNorm
from transfer.tasks.classes import BENCHMARK
from transfer.tasks.datasets import PUBLISHED

GOLDEN = Path(__file__).with_name("moco_state_dict.json")
GUARDS = {
    **dict.fromkeys(("voc07", "voc07_vissl", "voc0712", "voc0712_trainval", "coco", "coco_2x"), (True, 0, 54)),
    **dict.fromkeys(("voc0712_frozen", "coco_frozen"), (True, 215, 11)),  # res5's ten norms and the extra one
    **dict.fromkeys(("coco_fpn", "coco_fpn_2x"), (False, 0, 69)),  # ResNet's 53, FPN's 8, 4 in each head
    **dict.fromkeys(("voc07_fpn", "voc0712_fpn"), (False, 0, 65)),
    "coco_fpn_frozen": (False, 265, 16),
}
"""By task: the extra norm, frozen tensors (of 265), trained norms."""


def detector(root: Path, task: str, *words: str) -> tuple[nn.Module, Any]:
    """The detector of a task as it trains on several GPUs, on torch's meta device: shapes without memory."""
    register()
    cfg = load_config(root / f"configs/transfer/{task}.yaml", overrides=("MODEL.DEVICE", "meta", *words)).cfg
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(BENCHMARK[PUBLISHED[cfg.DATASETS.TEST[0]].layout])
    with torch.device("meta"):
        return build_model(cfg), cfg


@pytest.mark.parametrize("task", GUARDS)
def test_every_config_passes_the_guards(root: Path, task: str) -> None:
    model, cfg = detector(root, task)
    extra, frozen, norms = GUARDS[task]
    norm = "SyncBatchNorm" if "fpn" in task else "NaiveSyncBatchNorm"
    assert check_model(model, cfg) == {"extra_norm": extra, "frozen": frozen, "norm": norm, "norms": norms}


def test_every_config_is_guarded(root: Path) -> None:
    files = {file.stem for file in (root / "configs/transfer").glob("*.yaml")}
    assert GUARDS.keys() == files - {"base_rcnn_c4", "base_rcnn_fpn"}


@pytest.mark.parametrize(("depth", "norms"), [("18", 36), ("34", 52)])
def test_an_fpn_is_built_on_basic_blocks_too(root: Path, depth: str, norms: int) -> None:
    model, cfg = detector(root, "coco_fpn", "MODEL.RESNETS.DEPTH", depth)
    assert check_model(model, cfg)["norms"] == norms


@pytest.mark.parametrize("part", ["FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"])
@pytest.mark.parametrize(("norm", "message"), [("", "has no norm"), ("BN", "is a BatchNorm2d, not the SyncBatchNorm")])
def test_the_walk_includes_fpn_and_heads(root: Path, part: str, norm: str, message: str) -> None:
    model, cfg = detector(root, "coco_fpn", f"MODEL.{part}.NORM", norm)
    with pytest.raises(UserError, match=message):
        check_model(model, cfg)
    with pytest.raises(UserError, match=rf"MODEL\.{part}\.NORM"):
        resolve_norm(cfg, processes=8)


@pytest.mark.parametrize("task", ["coco_frozen", "coco_fpn_frozen"])
def test_a_frozen_stage_with_one_trained_parameter_or_norm_is_refused(root: Path, task: str) -> None:
    model, cfg = detector(root, task)
    resnet: Any = model.backbone if "fpn" not in task else model.backbone.bottom_up  # type: ignore[union-attr]
    resnet.res3[1].conv2.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"res3\.1\.conv2\.weight is trained"):
        check_model(model, cfg)
    resnet.res3[1].conv2.weight.requires_grad_(False)
    resnet.res3[1].conv2.norm = nn.BatchNorm2d(128).requires_grad_(False)
    with pytest.raises(UserError, match=r"res3\.1\.conv2\.norm is a BatchNorm2d, not the FrozenBatchNorm2d"):
        check_model(model, cfg)


@pytest.mark.parametrize("task", ["voc0712_trainval", "coco_2x"])
def test_tensors_are_those_of_moco_s_own_detection_code(root: Path, task: str) -> None:
    """Names, order and shapes; `make_golden.py` made the file from facebookresearch/moco at 132aea9."""
    model, _ = detector(root, task)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert list(found.items()) == list(json.loads(GOLDEN.read_text())[task].items())


def test_the_extra_norm_comes_last_in_res5_and_box_and_mask_branch_both_see_it(root: Path) -> None:
    model, _ = detector(root, "coco")
    heads: Any = model.roi_heads
    assert list(dict(heads.res5.named_children())) == ["0", "1", "2", "norm"]
    assert isinstance(heads.res5.norm, NaiveSyncBatchNorm) and heads.res5.norm.num_features == 2048
    order: list[nn.Module] = []
    for module in (heads.res5[2], heads.res5.norm):
        module.register_forward_hook(lambda layer, _inputs, _output: order.append(layer))
    heads.eval()
    output = heads.res5(torch.zeros((2, 1024, 14, 14), device="meta"))
    assert output.shape == (2, 2048, 7, 7) and order == [heads.res5[2], heads.res5.norm]


def test_registering_twice_changes_nothing() -> None:
    register()
    register()
    assert ROI_HEADS_REGISTRY.get(NAME) is Res5ROIHeadsExtraNorm


def test_importing_registers_nothing(root: Path) -> None:
    code = (
        "import transfer.modeling, transfer.engine.trial, sys\n"
        "from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY\n"
        "sys.exit('Res5ROIHeadsExtraNorm' in ROI_HEADS_REGISTRY)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, check=False).returncode == 0
