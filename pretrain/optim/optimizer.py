"""The optimiser that SOLVER.OPTIMIZER names."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from pretrain.methods.base import Method
from pretrain.optim.lars import build_larc, build_lars
from pretrain.optim.schedule import peak_lr
from pretrain.optim.sgd import IMPLEMENTATIONS, build_sgd, param_groups


def build_optimizer(method: Method, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimiser of the method's trained parameters at the peak learning rate."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "sgd":
        return build_sgd(method, cfg)
    build = build_lars if solver.OPTIMIZER == "lars" else build_larc
    return build(
        param_groups(method, solver.FIX_PRED_LR),
        peak_lr(cfg),
        solver.MOMENTUM,
        solver.WEIGHT_DECAY,
        solver.TRUST,
        IMPLEMENTATIONS[solver.IMPLEMENTATION]["foreach"],
    )
