"""Fewer GPUs than the recipe was made for: batch, learning rate and schedule change together, and only when asked."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from common.errors import UserError


def scale(cfg: CfgNode, reference_gpus: int, processes: int) -> CfgNode:
    """The recipe of `reference_gpus` GPUs on `processes` of them, each with as many images as before.

    Detectron2's rule [detectron2: DefaultTrainer.auto_scale_workers]: total batch and learning rate by the ratio,
    iterations,
    steps, warm-up and periods by its inverse: 8 GPUs to 4 is batch 8, lr 0.01, twice the iterations [moco issue 11].

    Args:
        cfg: the recipe; not changed.
        reference_gpus: how many GPUs its total batch was meant for.
        processes: how many there are.

    Raises:
        UserError: the total batch does not divide.
    """
    total = cfg.SOLVER.IMS_PER_BATCH
    if reference_gpus < 1 or total % reference_gpus:
        raise UserError(
            f"--reference-gpus {reference_gpus}: a total batch of {total} does not divide among as many GPUs; "
            "use a divisor of it"
        )
    scaled = cfg.clone()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = reference_gpus
    scaled = DefaultTrainer.auto_scale_workers(scaled, processes)
    # Detectron2 leaves the number that is used now; a result must say for how many the recipe was made.
    scaled.SOLVER.REFERENCE_WORLD_SIZE = reference_gpus
    return scaled
