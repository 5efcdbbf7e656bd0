"""Guards: what must hold of the built detector before its first step, and of its losses in every step."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import Tensor, nn

from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.training.collectives import sum_over_processes
from ssl_transfer.training.divergence import Diverged
from transfer.engine.config import is_fpn
from transfer.weights.converted import tensor_sha256

logger = logging.getLogger(__name__)

SYNCHRONISED = ("naiveSyncBN", "naiveSyncBN_N", "SyncBN", "nnSyncBN")
"""Norms whose statistics cover the images of all processes."""
BATCH_NORMS = ("BN", *SYNCHRONISED)
PLAIN = nn.modules.batchnorm._BatchNorm


STAGES = ("stem", "res2", "res3", "res4", "res5")
WITH_NORM = re.compile(r"backbone\.|roi_heads\.(box_head|mask_head\.mask_fcn|res5)")
"""Convolutions that a norm follows; the RPN's head and the mask head's last two layers have none in any source."""


def norm_sections(cfg: CfgNode) -> dict[str, CfgNode]:
    """The sections whose NORM the detector uses, by their keys: C4 takes that of the ResNet everywhere."""
    keys = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD") if is_fpn(cfg) else ("RESNETS",)
    return {f"MODEL.{key}": cfg.MODEL[key] for key in keys}


def resolve_norm(cfg: CfgNode, processes: int) -> None:
    """With a single process replace each synchronised norm by plain BN, which is the same there, and log it.

    Raises:
        UserError: pre-trained batch-norm weights do not fit a norm, or the detector's parts have different ones.
    """
    norm = cfg.MODEL.RESNETS.NORM
    for key, section in norm_sections(cfg).items():
        if section.NORM not in BATCH_NORMS:
            raise UserError(
                f"{key}.NORM: {section.NORM!r} does not train batch-norm weights; use one of {', '.join(BATCH_NORMS)}"
            )
        if norm != section.NORM:
            raise UserError(f"{key}.NORM is {section.NORM}, MODEL.RESNETS.NORM is {norm}; set them alike")
    if norm in SYNCHRONISED and processes == 1:
        logger.info(
            "a single process has the whole batch: MODEL.RESNETS.NORM %s becomes BN, which is the same there", norm
        )
        for section in norm_sections(cfg).values():
            section.NORM = "BN"


def images_per_statistic(cfg: CfgNode, processes: int) -> int:
    """Number of images that the norm's batch statistics cover."""
    total = int(cfg.SOLVER.IMS_PER_BATCH)
    return total if cfg.MODEL.RESNETS.NORM in SYNCHRONISED else total // processes


def is_frozen(name: str, freeze_at: int) -> bool:
    """Whether a detector's tensor belongs to the stages that MODEL.BACKBONE.FREEZE_AT freezes, the stem being 1."""
    stage = name.removeprefix("backbone.").removeprefix("bottom_up.").split(".")[0]
    return name.startswith("backbone.") and stage in STAGES[:freeze_at]


def check_model(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Check that the built detector trains every parameter but those of frozen stages, with the requested norms.

    Args:
        model: the detector, not in DistributedDataParallel.
        cfg: its config.

    Returns:
        For the result: `extra_norm` (C4: after res5), `frozen`, the number of tensors that stay as they are loaded,
        `norm`, the trained ones' class, and `norms`, their number.

    Raises:
        UserError: another set of parameters is frozen, a norm is of another type than the config's or missing, or
            C4's extra norm is missing.
    """
    freeze_at, fpn = cfg.MODEL.BACKBONE.FREEZE_AT, is_fpn(cfg)
    if freeze_at not in (0, 5 if fpn else 4):
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT {freeze_at} freezes a part of the backbone; fine-tuning trains all: "
            f"set MODEL.BACKBONE.FREEZE_AT 0, or {5 if fpn else 4} to freeze {'res5' if fpn else 'res4'} and all before"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad == is_frozen(name, freeze_at):
            raise UserError(f"{name} is {'trained' if parameter.requires_grad else 'frozen'}, unlike its config says")
    norms = _check_norms(model, cfg, freeze_at)
    if not fpn and "roi_heads.res5.norm" not in norms:
        raise UserError("the head has no extra norm after res5; set MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm")
    norm = type(get_norm(cfg.MODEL.RESNETS.NORM, 1)).__name__
    return {"extra_norm": not fpn, "frozen": len(frozen_tensors(model, cfg)), "norm": norm, "norms": len(norms)}


def _check_norms(model: nn.Module, cfg: CfgNode, freeze_at: int) -> list[str]:
    """The names of the trained norms; each is of the config's kind, a frozen stage's norm is frozen."""
    expected = type(get_norm(cfg.MODEL.RESNETS.NORM, 1))
    norms = []
    for name, module in model.named_modules():
        if isinstance(module, Conv2d) and WITH_NORM.match(name) and module.norm is None:
            raise UserError(f"{name} has no norm; set the NORM of its section as MODEL.RESNETS.NORM")
        if not isinstance(module, (PLAIN, FrozenBatchNorm2d)):
            continue
        wanted = FrozenBatchNorm2d if is_frozen(name, freeze_at) else expected
        if type(module) is not wanted:
            raise UserError(
                f"{name} is a {type(module).__name__}, not the {wanted.__name__} that MODEL.RESNETS.NORM "
                f"{cfg.MODEL.RESNETS.NORM} requires"
            )
        if isinstance(module, PLAIN):
            if not module.affine or not module.track_running_stats:
                raise UserError(f"{name} does not train its scale and shift or has no running statistics")
            norms.append(name)
    return norms


def frozen_tensors(model: nn.Module, cfg: CfgNode) -> dict[str, str]:
    """The digest of each tensor of the frozen stages, running statistics included, by its name in the detector."""
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    named = [(name, value) for name, value in model.state_dict().items() if is_frozen(name, freeze_at)]
    return {name: "" if value.is_meta else tensor_sha256(value) for name, value in named if value.is_floating_point()}


def check_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """Check that training left every frozen tensor as it was, bit for bit.

    Args:
        before: `frozen_tensors` of the detector with its initial weights, which `load_weights` has compared.
        after: the same of the trained detector.

    Returns:
        For the result: `frozen_sha256`, one digest over all of them by name; nothing where none is frozen.

    Raises:
        UserError: names the tensors that differ.
    """
    differ = [name for name, sha256 in before.items() if after.get(name) != sha256]
    if differ or before.keys() != after.keys():
        raise UserError(
            f"{len(differ)} of {len(before)} frozen tensors changed in training: {abbreviate(differ)}; "
            "the trial has no result; run it again, in another --output"
        )
    if not before:
        return {}
    listed = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(after.items()))
    return {"frozen_sha256": hashlib.sha256(listed.encode()).hexdigest()}


def describe_guards(guards: Mapping[str, Any]) -> str:
    """What was checked before the first step, as text: `265/265 weights loaded, extra norm present, …`."""
    loaded = str(guards["weights_loaded"])
    weights = f"{loaded.split()[0]} weights loaded" if "/" in loaded else f"weights: {loaded}"
    extra = "extra norm present, " if guards["extra_norm"] else ""
    frozen = f"{guards['frozen']} tensors frozen" if guards["frozen"] else "nothing frozen"
    return f"{weights}, {extra}{frozen}, {guards['norms']} norms of {guards['norm']}"


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
