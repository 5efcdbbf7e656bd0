"""Our SimCLR and SwAV on the golden values' narrow model."""

from __future__ import annotations

from typing import Any

from torch import nn

from pretrain.methods.simclr import SimCLR
from pretrain.methods.swav import SwAV
from pretrain.models.heads import build_predictor, build_projector
from tests.pretrain.golden import narrow
from tests.pretrain.golden import narrow_contrast as fixed

FROZEN_AND_QUEUED: dict[str, Any] = {
    "prototypes": fixed.RUN_PROTOTYPES,
    "freeze_steps": fixed.FREEZE,
    "queue": fixed.QUEUE,
    "queue_steps": fixed.QUEUE // narrow.BATCH,
    "queue_start": fixed.QUEUE_START,
}
"""The arguments of the golden run with a queue; without its last three, of the one without."""


def narrow_simclr(predict: bool = False, **arguments: Any) -> SimCLR:
    """In float64, with weights that depend on their names alone; BN on every layer of the projector."""
    method = SimCLR(*_networks("default", predict), narrow.DIM, **arguments).double()
    narrow.fill(method)
    return method


def narrow_swav(predict: bool = False, **arguments: Any) -> SwAV:
    """In float64, with the golden run's initial weights; no BN on the projector's output."""
    method = SwAV(*_networks("hidden", predict), narrow.DIM, **arguments).double()
    narrow.fill(method)
    return method


def _networks(norm: str, predict: bool) -> Any:
    encoder = narrow.NarrowResNet(1, zero_init_residual=False)
    encoder.fc = nn.Identity()  # type: ignore[assignment]
    head = build_predictor(narrow.DIM, narrow.PRED_DIM, norm) if predict else None
    return encoder, build_projector(narrow.WIDTH, narrow.WIDTH, narrow.DIM, norm=norm), head
