"""What must hold of the built detector before its first step: extra norm, norm types, nothing frozen."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import nn

from common.errors import UserError

logger = logging.getLogger(__name__)

SYNCHRONISED = ("naiveSyncBN", "naiveSyncBN_N", "SyncBN", "nnSyncBN")
"""Norms whose statistics cover the images of all processes."""
BATCH_NORMS = ("BN", *SYNCHRONISED)
PLAIN = nn.modules.batchnorm._BatchNorm


def settle_norm(cfg: CfgNode, processes: int) -> None:
    """With one process a synchronised norm is plain BN: say so and use it.

    Raises:
        UserError: the norm is none that pre-trained batch-norm weights fit.
    """
    norm = cfg.MODEL.RESNETS.NORM
    if norm not in BATCH_NORMS:
        raise UserError(
            f"MODEL.RESNETS.NORM: {norm!r} does not train batch-norm weights; use one of {', '.join(BATCH_NORMS)}"
        )
    if norm in SYNCHRONISED and processes == 1:
        logger.info(
            "one process holds the whole batch: MODEL.RESNETS.NORM %s becomes BN, which is the same there", norm
        )
        cfg.MODEL.RESNETS.NORM = "BN"


def images_per_statistic(cfg: CfgNode, processes: int) -> int:
    """How many images the norm's batch statistics cover."""
    total = int(cfg.SOLVER.IMS_PER_BATCH)
    return total if cfg.MODEL.RESNETS.NORM in SYNCHRONISED else total // processes


def check_model(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Walk the built model.

    Args:
        model: the detector, not wrapped.
        cfg: its config.

    Returns:
        `{"extra_norm": True, "frozen": 0, "norm": its class, "norms": how many}` for the result.

    Raises:
        UserError: a parameter is frozen, a norm is of another type than the config's, or the extra norm is missing.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise UserError(
            f"{len(frozen)} parameters are frozen, {frozen[0]} first; fine-tuning trains all: "
            "set MODEL.BACKBONE.FREEZE_AT 0"
        )
    expected = type(get_norm(cfg.MODEL.RESNETS.NORM, 1))
    norms = {name: module for name, module in model.named_modules() if isinstance(module, (PLAIN, FrozenBatchNorm2d))}
    for name, module in norms.items():
        if type(module) is not expected:
            raise UserError(
                f"{name} is a {type(module).__name__}, not the {expected.__name__} that MODEL.RESNETS.NORM "
                f"{cfg.MODEL.RESNETS.NORM} asks for"
            )
        if not module.affine or not module.track_running_stats:
            raise UserError(f"{name} does not train its scale and shift or keeps no running statistics")
    if "roi_heads.res5.norm" not in norms:
        raise UserError("the head has no extra norm after res5; set MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm")
    return {"extra_norm": True, "frozen": 0, "norm": expected.__name__, "norms": len(norms)}
