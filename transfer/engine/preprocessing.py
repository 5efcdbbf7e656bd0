"""The preprocessing block goes into the config as a whole: it travels with the weights, never apart from them."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode

from common.config import value_of
from common.errors import UserError
from transfer.weights.canonical import Preprocessing
from transfer.weights.preprocessing import apply_to, detectron2_values


def settle_preprocessing(cfg: CfgNode, block: Preprocessing, set_keys: Mapping[str, str]) -> None:
    """Set the block into `cfg`, all of it or nothing.

    Args:
        cfg: the config, changed in place.
        block: what the weights were trained with; `TORCHVISION` for a detector from scratch.
        set_keys: keys the user set, with the place: such a key must agree with the weights.

    Raises:
        UserError: the config sets a part of the block to something else than the weights need.
    """
    for key, needed in detectron2_values(block).items():
        found = value_of(cfg, key)
        if key in set_keys and found != needed:
            raise UserError(
                f"{set_keys[key]}: {key} is {found}, but the weights need {needed}; remove the key: "
                "it travels with the weights"
            )
    apply_to(cfg, block)
