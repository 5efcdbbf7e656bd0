"""Guards: what must hold of the built detector before its first step, and of its losses in every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import Tensor, nn

from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import sum_over_processes
from ssl_transfer.training.divergence import Diverged

logger = logging.getLogger(__name__)

SYNCHRONISED = ("naiveSyncBN", "naiveSyncBN_N", "SyncBN", "nnSyncBN")
"""Norms whose statistics cover the images of all processes."""
BATCH_NORMS = ("BN", *SYNCHRONISED)
PLAIN = nn.modules.batchnorm._BatchNorm


def resolve_norm(cfg: CfgNode, processes: int) -> None:
    """With a single process replace a synchronised norm by plain BN, which is the same there, and log it.

    Raises:
        UserError: pre-trained batch-norm weights do not fit the norm.
    """
    norm = cfg.MODEL.RESNETS.NORM
    if norm not in BATCH_NORMS:
        raise UserError(
            f"MODEL.RESNETS.NORM: {norm!r} does not train batch-norm weights; use one of {', '.join(BATCH_NORMS)}"
        )
    if norm in SYNCHRONISED and processes == 1:
        logger.info(
            "a single process has the whole batch: MODEL.RESNETS.NORM %s becomes BN, which is the same there", norm
        )
        cfg.MODEL.RESNETS.NORM = "BN"


def images_per_statistic(cfg: CfgNode, processes: int) -> int:
    """Number of images that the norm's batch statistics cover."""
    total = int(cfg.SOLVER.IMS_PER_BATCH)
    return total if cfg.MODEL.RESNETS.NORM in SYNCHRONISED else total // processes


def check_model(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Check that the built detector trains every parameter with the requested norms.

    Args:
        model: the detector, not in DistributedDataParallel.
        cfg: its config.

    Returns:
        `{"extra_norm": True, "frozen": 0, "norm": its class, "norms": their number}` for the result.

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
                f"{cfg.MODEL.RESNETS.NORM} requires"
            )
        if not module.affine or not module.track_running_stats:
            raise UserError(f"{name} does not train its scale and shift or has no running statistics")
    if "roi_heads.res5.norm" not in norms:
        raise UserError("the head has no extra norm after res5; set MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm")
    return {"extra_norm": True, "frozen": 0, "norm": expected.__name__, "norms": len(norms)}


def describe_guards(guards: Mapping[str, Any]) -> str:
    """What was checked before the first step, as text: `265/265 weights loaded, extra norm present, …`."""
    loaded = str(guards["weights_loaded"])
    weights = f"{loaded.split()[0]} weights loaded" if "/" in loaded else f"weights: {loaded}"
    return f"{weights}, extra norm present, nothing frozen, {guards['norms']} norms of {guards['norm']}"


class FiniteLossGuard(nn.Module):
    """A detector whose losses are checked in every training step.

    Args:
        model: the detector, or its DistributedDataParallel.
        rpn_head: the detector's RPN head. Detectron2 raises on the one rank that has proposals that are not finite,
            and the other ranks would wait for it indefinitely. So all ranks check the head's outputs before.
    """

    def __init__(self, model: nn.Module, rpn_head: nn.Module) -> None:
        super().__init__()
        self.model = model
        rpn_head.register_forward_hook(self._check_rpn)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's losses.

        Raises:
            Diverged: on every rank, when one of them has a loss that is not finite.
        """
        try:
            losses = self.model(batch)
        except FloatingPointError as error:
            raise Diverged("the proposals are not finite") from error
        if self.training:
            require_finite(losses)
        return losses

    def _check_rpn(self, head: nn.Module, _inputs: Any, outputs: tuple[list[Tensor], list[Tensor]]) -> None:
        if head.training:
            logits, deltas = outputs
            require_finite({"the RPN's objectness": _sum(logits), "the RPN's box deltas": _sum(deltas)})


def _sum(tensors: list[Tensor]) -> Tensor:
    """One number that is finite where all of `tensors` are (the magnitudes are far from overflow)."""
    return torch.stack([tensor.detach().float().sum() for tensor in tensors]).sum()


def require_finite(values: Mapping[str, Tensor]) -> None:
    """Raise on every rank when a value (scalar tensor) is NaN or infinite on one of them.

    Raises:
        Diverged: names the first such value and what it is.
    """
    stacked = torch.stack([value.detach().float() for value in values.values()])
    found = sum_over_processes(torch.stack([torch.isnan(stacked), torch.isinf(stacked)]).float())
    if not found.any():
        return
    nan, inf = found.bool().tolist()
    for index, name in enumerate(values):
        if nan[index] or inf[index]:
            raise Diverged(f"{name} is {'NaN' if nan[index] else 'infinite'}")
