"""The preprocessing block as Detectron2 configuration values."""

from __future__ import annotations

from typing import Any

from transfer.weights.canonical import Preprocessing


def detectron2_values(block: Preprocessing) -> dict[str, Any]:
    """Detectron2 config keys that make a model see images as the weights' own training did.

    Returns:
        dotted key → value, for INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD (in the order of INPUT.FORMAT, 0…255
        scale) and MODEL.RESNETS.STRIDE_IN_1X1.
    """
    return {
        "INPUT.FORMAT": block.channel_order,
        "MODEL.PIXEL_MEAN": list(block.mean),
        "MODEL.PIXEL_STD": list(block.std),
        "MODEL.RESNETS.STRIDE_IN_1X1": block.stride_in_1x1,
    }


def apply_to(cfg: Any, block: Preprocessing) -> None:
    """Write the block into a Detectron2 CfgNode, in place."""
    for dotted, value in detectron2_values(block).items():
        *parents, leaf = dotted.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[leaf] = value
